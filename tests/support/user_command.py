"""The user's command as a process of its own, in a folder of its own, on a Ray of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.tracking.events import read_events
from tests.support.waiting import wait_for


def start(
    folder: Path,
    *words: str,
    module: str = "orchestrator.run",
    address: str | None = None,
    surroundings: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start ``python -m MODULE WORDS`` in ``folder``, which is its home, too.

    Args:
        folder: that it works in.
        words: of the command line.
        module: what is run.
        address: of the Ray cluster to join; None for a local one.
        surroundings: variables of the environment that differ from usual.
        before: command that is given this one.
    """
    environment = {
        **os.environ,
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    environment.pop("RAY_ADDRESS", None)
    if address is not None:
        environment["RAY_ADDRESS"] = address
    environment.update(surroundings or {})
    return subprocess.Popen(
        [*before, sys.executable, "-m", module, *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0, timeout: float = 300.0) -> str:
    """Wait for the end, see that the exit code is ``code``, and return what was said."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(
            f"not over after {timeout:g} s; until then it said:\n{output}"
        ) from None
    assert process.returncode == code, output
    return output


def kill_after(process: subprocess.Popen[str], log: Path, step: int) -> None:
    """SIGKILL the command and everything it has started, once ``log`` has an event of ``step``."""
    wait_for(
        lambda: max((event.step for event in read_events(log)), default=0) >= step, 400, process
    )
    kill_tree(process)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL the command and everything it has started."""
    main = psutil.Process(process.pid)
    everything = [*main.children(recursive=True), main]
    for one in everything:
        if one.is_running():
            one.kill()
    psutil.wait_procs(everything, timeout=60)
    process.communicate()


def result(folder: Path, name: str) -> dict[str, Any]:
    """``result.json`` of the run of this name."""
    tree: dict[str, Any] = json.loads((folder / "runs" / name / "result.json").read_text())
    return tree
