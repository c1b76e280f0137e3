"""What the locks of :mod:`run_lock` and :mod:`bucket_lock` share: holders, and their signs of life.

A holder writes a counter every few seconds. Who finds a lease that was not given back, by a process
whose end cannot be seen from here, watches the counter: a live holder is never robbed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar

from typing_extensions import Self

from orchestrator.errors import StorageError

log = logging.getLogger(__name__)

#: In place of a counter: its holder has given the run back.
RELEASED = b"released"
#: No lease and no counter is longer.
MAX_BYTES = 2**16
#: Who holds a lease that cannot be read.
UNKNOWN = "a process that is just starting or ending"


class HeldError(StorageError):
    """Another live process holds the run."""


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a run.

    Attributes:
        host: name of the machine.
        boot: identity of its running kernel.
        namespace: of its process numbers; containers have their own.
        pid: process on it.
        started: when the process began, in clock ticks since the machine did, which tells it from
            a later process with the same number; None where that cannot be found out.
        since: when it took the run, by its clock; for people only.
    """

    host: str
    boot: str
    namespace: int
    pid: int
    started: int | None
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """The calling process, from now on."""
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            namespace=_namespace(),
            pid=os.getpid(),
            started=_started(os.getpid()),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )

    def is_here(self) -> bool:
        """Whether this very process lives, and can be sent signals to by its number."""
        here = self.boot == _boot() and self.namespace == _namespace()
        return here and self.started is not None and _started(self.pid) == self.started

    def ended_here(self) -> bool:
        """Whether it ran where signals can be sent to it, and is gone for sure."""
        here = self.boot == _boot() and self.namespace == _namespace()
        return here and self.started is not None and _started(self.pid) != self.started

    def runs_on_this_kernel(self) -> bool:
        """Whether its machine is this one and was not started anew, whatever the container."""
        return self.boot == _boot()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except FileNotFoundError:
        return socket.gethostname()  # Sandboxes hide it.


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except FileNotFoundError:
        return 0


def _started(pid: int) -> int | None:
    """Start of a process in ticks since boot; None when there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name, in parentheses, may itself hold spaces and parentheses: proc_pid_stat(5).
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def shut_out(where: str, token: int, newest: int, who: str) -> StorageError:
    """What a process gets to hear whose run was taken over.

    Args:
        where: the run.
        token: of the holder on whose behalf it works.
        newest, who: token and name of the holder that there is now.
    """
    return StorageError(
        f"{where}: this process (token {token}) was shut out: the run now belongs to {who} (token "
        f"{newest}). Nothing was written. Next: let that process go on; this one can be ended"
    )


class LivingLock(ABC):
    """A lock whose holder gives signs of life; a context manager.

    Args:
        heartbeat: seconds between signs of life.
        patience: seconds without one after which the holder on another machine counts as dead.
    """

    #: Seconds between two looks at another's counter, at most.
    LOOK_SECONDS: ClassVar[float]

    def __init__(self, *, heartbeat: float, patience: float) -> None:
        self.heartbeat = heartbeat
        self.patience = patience
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self._advancing = threading.Lock()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @abstractmethod
    def acquire(self) -> None:
        """Take the run.

        Raises:
            StorageError: a living process holds it, which is named; or it cannot be written.
        """

    @abstractmethod
    def release(self) -> None:
        """Give the run back; nothing happens if it is not held."""

    @abstractmethod
    def _beat(self) -> None:
        """Write the counter until ``self._stop`` is set."""

    def _start_beating(self) -> None:
        self._stop.clear()
        self._beating = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._beating.start()

    def _stop_beating(self) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()

    def _stands_still(
        self, where: str, who: str, read: Callable[[], bytes], is_newest: Callable[[], bool]
    ) -> bool:
        """Whether a counter does not move for ``patience`` seconds, or says that it is over.

        Args:
            where, who: the run and the holder, to be named.
            read: the counter.
            is_newest: whether its lease is still the newest.
        """
        log.warning(
            "%s was not given back by %s; watching for up to %g s whether it still lives",
            where,
            who,
            self.patience,
        )
        before = read()
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(min(self.LOOK_SECONDS, self.heartbeat / 4))
            if not is_newest():
                return False
            beat = read()
            if beat != before:
                return beat == RELEASED
        return True
