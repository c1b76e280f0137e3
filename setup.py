"""The extension module; everything else about the package is declared in setup.cfg.

It is optional: where it cannot be built the install goes on, and the Python reference serves.
"""

import sys
from pathlib import Path

from setuptools import Extension, setup

CORE = Path("native/core")
SOURCES = [Path("native/binding.cpp"), *sorted(CORE.glob("*.cpp"))]
DEPENDS = [*sorted(CORE.glob("*.hpp")), *sorted(CORE.glob("*.inl"))]

# Bits must not depend on the machine that builds or runs: no contraction to fused multiply-add,
# and no -march=native; faster instructions are chosen at run time.
FLAGS = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-psabi"]


def extensions() -> list[Extension]:
    """The extension, or nothing with a word on why."""
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        print("native: pybind11 is missing, the Python reference will serve", file=sys.stderr)
        return []
    return [
        Pybind11Extension(
            "native._core",
            [path.as_posix() for path in SOURCES],
            depends=[path.as_posix() for path in DEPENDS],
            cxx_std=17,
            extra_compile_args=FLAGS,
            optional=True,
        )
    ]


setup(ext_modules=extensions())
