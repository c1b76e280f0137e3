"""Which implementation serves, what is said about it, and the build without a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native_cases import compiled

ROOT = Path(__file__).parents[2]

_TWO_CALLS = """
import numpy as np, native
for _ in range(2):
    keep, _, _ = native.soft_nms_batch(
        np.array([[0, 0, 2, 2], [0, 0, 2, 2]], np.float32),
        np.array([0.5, 0.9], np.float32),
        np.array([0, 0]),
        np.array([0, 2]),
        max_total=5,
    )
    native.backend()
print(native.backend(), keep.tolist())
"""


#: An editable installation would find the kernels of the checkout for any package of this name.
_NO_EDITABLE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
"""


def _run(
    code: str, folder: Path = ROOT, *behind: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    if folder != ROOT:
        code = _NO_EDITABLE + code
    clean = {k: v for k, v in os.environ.items() if k != "ORCHESTRATOR_NATIVE"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(map(str, (folder, *behind))), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package that was built where the compiler fails."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(ROOT / "native", folder / "native", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(ROOT / "setup.py", folder)
    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=folder,
        env={**os.environ, "CC": "false", "CXX": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert 'building extension "native._core" failed' in built.stdout + built.stderr
    assert not list(folder.glob("native/*.so"))
    return folder


def test_without_a_compiler_the_reference_serves_and_says_so_once(without_kernels: Path) -> None:
    done = _run(_TWO_CALLS, without_kernels)
    assert done.stdout.split("\n")[0] == "reference [1]", done.stderr
    assert done.stderr.count("compiled kernels are missing") == 1
    assert "C++17 compiler" in done.stderr


def test_the_reference_can_be_forced_and_is_silent() -> None:
    done = _run(_TWO_CALLS, ORCHESTRATOR_NATIVE="0")
    assert (done.stdout, done.stderr) == ("reference [1]\n", "")


def test_importing_says_and_loads_nothing(without_kernels: Path) -> None:
    done = _run("import native", without_kernels)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_compiled_kernels_serve_when_they_are_there() -> None:
    compiled()
    assert _run(_TWO_CALLS).stdout == "native [1]\n"
    assert _run(_TWO_CALLS, ORCHESTRATOR_NATIVE="1").stdout == "native [1]\n"


def test_compiled_kernels_can_be_demanded(without_kernels: Path) -> None:
    done = _run(_TWO_CALLS, without_kernels, ORCHESTRATOR_NATIVE="1")
    assert done.returncode == 1
    assert "ImportError: ORCHESTRATOR_NATIVE=1, but" in done.stderr


def test_other_wishes_are_refused() -> None:
    done = _run(_TWO_CALLS, ORCHESTRATOR_NATIVE="yes")
    assert "ORCHESTRATOR_NATIVE='yes': allowed are 0" in done.stderr


def test_kernels_built_from_older_sources_are_not_used(
    without_kernels: Path, tmp_path: Path
) -> None:
    shutil.copytree(without_kernels / "native", tmp_path / "native")
    (tmp_path / "native" / "_core.py").write_text("def suppress(): ...\n")
    done = _run(_TWO_CALLS, tmp_path)
    assert done.stdout == "reference [1]\n", done.stderr
    assert "native._core is older than this package: no first_bad_box" in done.stderr


def test_a_copy_without_kernels_uses_those_of_an_installed_package(
    without_kernels: Path, tmp_path: Path
) -> None:
    compiled()
    done = _run(_TWO_CALLS, without_kernels, ROOT)
    assert (done.stdout, done.stderr) == ("native [1]\n", "")
    shutil.copytree(without_kernels / "native", tmp_path / "native")
    changed = tmp_path / "native" / "core" / "matching.cpp"
    changed.write_text(changed.read_text() + "// Another version.\n")
    done = _run(_TWO_CALLS, tmp_path, ROOT)
    assert done.stdout == "reference [1]\n", done.stderr
    assert "were built of other sources" in done.stderr
