"""Commands that start Ray, run as users do: how Ray was set up for other tests decides nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def orchestrator(home: Path, *words: str) -> None:
    """Run ``orchestrator`` with ``words`` in a process of its own; it has to succeed."""
    environment = {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main", *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
