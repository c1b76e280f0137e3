"""Choice between the compiled kernels and the reference, made once per process on first use."""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol, cast

from native import reference
from native.rules import Bool, Float32, Float64, Int64, Rule, UInt64

if TYPE_CHECKING:
    from native.records import Exam, Found, Graded, Scale, Truth

_logger = logging.getLogger("native")

_VARIABLE = "ORCHESTRATOR_NATIVE"


class Kernels(Protocol):
    """What the compiled module and :mod:`native.reference` both offer, on checked arrays."""

    def first_bad_box(self, boxes: Float32) -> tuple[int, int]:
        """See :func:`native.reference.first_bad_box`."""

    def first_bad_score(self, scores: Float32) -> int:
        """See :func:`native.reference.first_bad_score`."""

    def suppress(
        self,
        boxes: Float32,
        scores: Float32,
        labels: Int64,
        offsets: Int64,
        rule: Rule,
        threads: int,
    ) -> tuple[Int64, Float32, Int64]:
        """See :func:`native.reference.suppress`."""

    def match(
        self,
        boxes: Float32,
        valid: Bool,
        priors: Float32,
        threshold: float,
        claims: int,
        threads: int,
    ) -> tuple[Int64, Bool]:
        """See :func:`native.reference.match`."""

    def collect(
        self, boxes: Float32, scores: Float32, threshold: float, threads: int
    ) -> tuple[Float32, Float32, Int64, Int64]:
        """See :func:`native.reference.collect`."""

    def grade(
        self, found: Found, truth: Truth, exam: Exam, threads: int
    ) -> tuple[UInt64, UInt64, Int64, Int64]:
        """See :func:`native.reference.grade`."""

    def tally(self, graded: Graded, scale: Scale, threads: int) -> tuple[Float64, Float64, Float64]:
        """See :func:`native.reference.tally`."""


def backend() -> Literal["native", "reference"]:
    """Which implementation serves in this process."""
    return "reference" if kernels() is _REFERENCE else "native"


@cache
def kernels() -> Kernels:
    """The compiled kernels if they were built and are wanted, else the reference.

    Raises:
        ImportError: ``ORCHESTRATOR_NATIVE=1`` and there are no compiled kernels.
        ValueError: ``ORCHESTRATOR_NATIVE`` is none of ``0``, ``1`` and empty.
    """
    wish = os.environ.get(_VARIABLE, "")
    if wish not in ("", "0", "1"):
        raise ValueError(
            f"{_VARIABLE}={wish!r}: allowed are 0 (reference), 1 (compiled kernels or an error) "
            "and unset (whichever is there)"
        )
    if wish == "0":
        return _REFERENCE
    try:
        return _complete(importlib.import_module("native._core"))
    except ImportError as error:
        remedy = "reinstall where a C++17 compiler is found (c++ --version) to build them"
        if wish == "1":
            raise ImportError(f"{_VARIABLE}=1, but: {error}; {remedy}") from error
        _logger.warning(
            "compiled kernels are missing (%s); the Python reference serves, equal but slower; "
            "%s, or set %s=0 to accept this silently",
            error,
            remedy,
            _VARIABLE,
        )
        return _REFERENCE


_REFERENCE = cast(Kernels, reference)


def _complete(module: ModuleType) -> Kernels:
    """The module, if it was built from these sources.

    Raises:
        ImportError: a kernel is missing.
    """
    missing = [name for name in vars(Kernels) if name[0] != "_" and not hasattr(module, name)]
    if missing:
        raise ImportError(f"native._core is older than this package: no {', '.join(missing)} in it")
    return cast(Kernels, module)


def default_threads() -> int:
    """Threads a call may use: the cores this process may run on, capped by ``OMP_NUM_THREADS``.

    Ray sets that variable to the cores it granted a worker, so kernels stay inside their share.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    granted = os.environ.get("OMP_NUM_THREADS", "")
    if granted.isdigit() and int(granted) > 0:
        return min(cores, int(granted))
    return cores
