"""Processes of their own, in which nothing that other tests have set up or imported decides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(*words: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """Run Python to its end, with this one's path and no cluster.

    Args:
        words: its arguments.
        surroundings: variables of the environment that differ from this process's.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        **surroundings,
    }
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )


def orchestrator(home: Path, *words: str) -> None:
    """Run ``orchestrator`` with ``words``; it has to succeed."""
    done = python("-m", "orchestrator.cli.main", *words, HOME=str(home))
    assert done.returncode == 0, done.stderr
