"""Whether a run goes on, decided by somebody who compares it with others.

The answer is a file in the run folder, one for each judged step, so it reaches workers on any node,
outlives every process, and is the same however often it is asked for.
"""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.run_files import DECISIONS

_POLL_SECONDS = 0.1
_ANSWERS = {"go": True, "stop": False}


def write_verdict(run_dir: Path, step: int, *, goes_on: bool) -> None:
    """Let the run know; the same answer may be given again."""
    write_atomic(_file(run_dir, step), b"go" if goes_on else b"stop")


def await_verdict(run_dir: Path, step: int) -> bool:
    """Whether the run goes on after ``step`` steps; waits until somebody says so."""
    file = _file(run_dir, step)
    while not file.exists():
        time.sleep(_POLL_SECONDS)
    return _ANSWERS[file.read_text(encoding="ascii")]


def _file(run_dir: Path, step: int) -> Path:
    return run_dir / DECISIONS / f"{step:09d}"
