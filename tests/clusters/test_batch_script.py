"""The batch script of Slurm, run in a shell with stand-ins for Slurm, Ray and the program."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "clusters" / "slurm.sbatch"
#: What each command does; all write down how they were called.
COMMANDS = {
    "scontrol": '[ "$1" = show ] && printf "one\\ntwo\\nthree\\n"; exit 0',
    "srun": """case "$*" in
  *getent*) echo "10.0.0.5 STREAM one" ;;
  *--head*) [ -z "${HEAD_FAILS:-}" ] && exec sleep 60; exit 1 ;;
  *) [ -z "${WORKER_FAILS:-}" ] && exec sleep 60; exit 1 ;;
esac""",
    # Nodes are there once they were started.
    "ray": '[ -z "${HEAD_FAILS:-}" ] && grep -q -e "start --head" log',
    "python": """case "$1" in
  -c) [ -z "${WORKER_FAILS:-}" ] && grep -q -e "start --block" log; exit ;;
esac
trap 'kill "$nap"; exit 75' TERM
sleep "$STEP" & nap=$!
wait "$nap"; exit "${CODE:-0}\"""",
}

Run: TypeAlias = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Starts the script in a folder with an environment."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in COMMANDS.items():
        log = f'echo "{name} $* [$RAY_ADDRESS $SRUN_CPUS_PER_TASK]" >> "{tmp_path}/log"'
        (tools / name).write_text(f"#!/bin/sh\n{log}\n{body}\n")
        (tools / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "one,two,three",
            "SLURM_NNODES": "3",
            "SLURM_CPUS_PER_TASK": "32",
            "STEP": "0",
            **variables,
        }
        process = subprocess.Popen(
            ["bash", str(SCRIPT)],
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        # What Slurm would end with the job.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def log_of(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_a_run_that_was_stopped_goes_back_into_the_queue(run: Run, tmp_path: Path) -> None:
    assert run(CODE="75").wait(timeout=60) == 75
    lines = log_of(tmp_path)
    assert lines[-1].startswith("scontrol requeue 7")
    (head,) = (line for line in lines if "ray start --head" in line)
    (workers,) = (line for line in lines if "ray start --block" in line)
    assert "--nodes=1 --ntasks=1 --nodelist=one ray start --head" in head
    assert "--node-ip-address=10.0.0.5 " in head
    assert "--nodes=2 --ntasks=2 --exclude=one ray start --block --address=10.0.0.5:6379" in workers
    assert all(line.endswith("[10.0.0.5:6379 32]") for line in (head, workers))
    (driver,) = (line for line in lines if "orchestrator.run" in line)
    assert driver.endswith("[10.0.0.5:6379 32]")


@pytest.mark.parametrize("code", [0, 64])
def test_a_run_that_is_over_does_not(code: int, run: Run, tmp_path: Path) -> None:
    assert run(CODE=str(code)).wait(timeout=60) == code
    assert not any("requeue" in line for line in log_of(tmp_path))


def test_the_wish_to_end_reaches_the_driver(run: Run, tmp_path: Path) -> None:
    process = run(STEP="60")
    deadline = time.monotonic() + 60.0
    while not any("orchestrator.run" in line for line in _lines(tmp_path)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # Until the driver's own handler is there.
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert log_of(tmp_path)[-1].startswith("scontrol requeue 7")


@pytest.mark.parametrize("failing", ["HEAD_FAILS", "WORKER_FAILS"])
def test_a_ray_that_does_not_start_ends_the_job(failing: str, run: Run, tmp_path: Path) -> None:
    """It would hold its machines until the time that Slurm grants is over."""
    variables: dict[str, Any] = {failing: "1"}
    assert run(**variables).wait(timeout=60) == 1
    assert not any("orchestrator.run" in line for line in log_of(tmp_path))


def test_a_folder_without_an_environment_ends_the_job(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin" / "activate").unlink()
    assert run().wait(timeout=60) == 1
    assert not (tmp_path / "log").exists()


def _lines(folder: Path) -> list[str]:
    return log_of(folder) if (folder / "log").exists() else []
