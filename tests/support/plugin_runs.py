"""Python processes in which the package of a test is installed, or is not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_with(plugin: Path | None, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments and a package's folder on its path; None for no package."""
    path = os.pathsep.join([str(ROOT), *([] if plugin is None else [str(plugin)])])
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
