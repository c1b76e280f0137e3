"""The process that ships a run to MLflow: ``python -m orchestrator.tracking.ship RUN_FOLDER``.

It is a process of its own so that nothing MLflow does - seconds of imports and migrations, a server
that does not answer, a lock - can hold up the driver, and so that it can be ended at any moment.
:class:`orchestrator.tracking.mlflow_shipper.MlflowShipper` starts it and talks to it through its
standard input, one JSON object a line: first the :class:`RunSpec`, in the end ``{"status": ...,
"tags": ..., "artifacts": ...}``. When the input ends without that, the driver has died.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from orchestrator.credentials import mask
from orchestrator.tracking.ship_state import RunSpec
from orchestrator.tracking.shipping import Connect, RunShipper

_MEBIBYTE = 1 << 20


class Machine:
    """Samples processor, memory and disk under the names that MLflow's own monitor uses.

    Not in the event log: nothing is decided by these numbers, and what cannot be sent is left out.

    Args:
        folder: whose disk is looked at.
        proc: of Linux.
    """

    def __init__(self, folder: Path, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._proc = proc
        self._before: tuple[int, int] | None = None

    def sample(self) -> dict[str, float]:
        """Values by metric; the processor's from the second call on, for the time between."""
        try:
            return {**self._processor(), **self._memory(), **self._disk()}
        except (OSError, ValueError, KeyError, IndexError):
            return {}  # No Linux, or one that tells nothing.

    def _processor(self) -> dict[str, float]:
        first = (self._proc / "stat").read_text().splitlines()[0].split()[1:9]
        ticks = [int(field) for field in first]
        # Of user, nice, system, idle, iowait, irq, softirq and steal, the fourth and fifth wait.
        idle, total = ticks[3] + ticks[4], sum(ticks)
        before, self._before = self._before, (idle, total)
        if before is None or total == before[1]:
            return {}
        waited = (idle - before[0]) / (total - before[1])
        return {"system/cpu_utilization_percentage": 100.0 * (1.0 - waited)}

    def _memory(self) -> dict[str, float]:
        lines = (self._proc / "meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        used = kib["MemTotal"] - kib["MemAvailable"]
        return {
            "system/system_memory_usage_megabytes": used / 1024,
            "system/system_memory_usage_percentage": 100.0 * used / kib["MemTotal"],
        }

    def _disk(self) -> dict[str, float]:
        total, used, _ = shutil.disk_usage(self._folder)
        return {
            "system/disk_usage_megabytes": used / _MEBIBYTE,
            "system/disk_usage_percentage": 100.0 * used / total,
        }


LOCK_FILE = "mlflow.lock"
#: Begins the line of a failure in the log of this process, and that of the end of failures.
FAILURE = "not shipped: "
RECOVERED = "shipped again"
#: Begins the line about a sample of the machine, which holds nothing else up.
_UNSAMPLED = "not sampled: "

#: Seconds between looks at the log, and between tries while MLflow fails.
INTERVAL = 2.0
LONGEST_WAIT = 60.0
#: Seconds between samples of the machine.
SAMPLE_INTERVAL = 30.0
#: Tries to bring the run to its end without anything arriving; the rest is left to the next start
#: of the run.
LAST_TRIES = 4
#: Of a connection that the kernel holds and the line has not taken.
UNSENT_BYTES = 1 << 17
#: A hanging server costs this process a request, not a minute; what failed is tried again here.
#: Retries inside MLflow would also create a run twice when only the answer was lost.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class Commands:
    """JSON lines of a pipe, read without blocking longer than asked."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._buffer = b""
        self.ended = False

    def next(self, seconds: float | None) -> dict[str, Any] | None:
        """The next command, or None when the time is over or the pipe was closed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while b"\n" not in self._buffer and not self.ended:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self._descriptor], [], [], left)
            if not ready:
                return None
            chunk = os.read(self._descriptor, 1 << 16)
            self.ended = not chunk
            self._buffer += chunk
        line, newline, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        command: dict[str, Any] | None = json.loads(line) if newline else None
        return command


def _lock(run_dir: Path) -> BinaryIO:
    """Wait until no other process ships this run: one that outlived its driver ends soon."""
    file = (run_dir / LOCK_FILE).open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _try(action: Callable[[], None], say: str = FAILURE) -> bool:
    """Whether it worked; a failure is a line in the log of this process, which begins so."""
    try:
        action()
    except Exception as error:
        text = mask(" ".join(str(error).split()))[:300]
        print(f"{say}{type(error).__name__}: {text}", file=sys.stderr, flush=True)
        return False
    return True


def ship_until_told(run_dir: Path, spec: RunSpec, commands: Commands, connect: Connect) -> bool:
    """Ship until the driver says how the run ended, or is gone.

    Returns:
        Whether everything has arrived.
    """
    shipper = RunShipper(run_dir, spec, connect)
    wait, failing = 0.0, False
    machine, due = Machine(run_dir), 0.0
    while True:
        last = commands.next(wait)
        if last is not None or commands.ended:
            break
        works = _try(shipper.ship)
        if works and failing:
            print(RECOVERED, file=sys.stderr, flush=True)
        failing = not works
        if works and time.monotonic() >= due:
            due = time.monotonic() + SAMPLE_INTERVAL
            _try(lambda: shipper.sample(machine.sample()), _UNSAMPLED)
        wait = INTERVAL if works else min(max(2 * wait, INTERVAL), LONGEST_WAIT)
    # A driver that ended without a word was killed.
    status = "KILLED"
    if last is not None:
        status = last["status"]
        shipper.change(tags=last["tags"], artifacts=last["artifacts"])
    attempt = 0
    while attempt < LAST_TRIES:
        if attempt:
            time.sleep(2.0 ** (attempt - 1))
        before = shipper.arrived
        if _try(lambda: shipper.finish(status)):
            return True
        if shipper.is_lost:
            return False  # What has not arrived is not here.
        attempt = 1 if shipper.arrived > before else attempt + 1
    return False


def show_progress_of_the_line() -> None:
    """Let what was read of a file be what the line has taken of it.

    The kernel would take megabytes ahead, which a slow line needs minutes for; meanwhile nothing
    moves that anybody sees, and the server's answer is waited for as if it had the file.
    """
    from urllib3.connection import HTTPConnection

    name = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Linux has it.
    option = (socket.IPPROTO_TCP, name, UNSENT_BYTES)
    # This very list is the default of the constructor.
    if name is not None and option not in HTTPConnection.default_socket_options:
        HTTPConnection.default_socket_options.append(option)


def main() -> int:
    """Entry point of the process; 0 when everything has arrived."""
    # Stopping the program stops the driver, which then has the last word here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    run_dir = Path(sys.argv[1])
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)

    def connect(uri: str) -> Any:
        from mlflow import MlflowClient

        show_progress_of_the_line()

        return MlflowClient(tracking_uri=uri)

    commands = Commands(sys.stdin.fileno())
    first = commands.next(None)
    if first is None:
        return 1
    with _lock(run_dir):
        return 0 if ship_until_told(run_dir, RunSpec(**first), commands, connect) else 1


if __name__ == "__main__":
    sys.exit(main())
