"""The lease under both locks, of folders and of buckets: holders, tokens and signs of life.

A holder writes a counter every few seconds. Who finds a lease that was not given back, by a process
whose end cannot be seen from here, watches the counter: a live holder is never robbed.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import ClassVar, Protocol

from typing_extensions import Self

from orchestrator.errors import StorageError
from orchestrator.storage.local import Storage
from orchestrator.storage.run_files import LOCK
from orchestrator.storage.sealed import UnusableError, seal, unseal

log = logging.getLogger(__name__)

#: In place of a counter: its holder has given the run back.
RELEASED = b"released"
#: No lease and no counter is longer.
MAX_BYTES = 2**16
#: Who holds a lease that cannot be read.
UNKNOWN = "a process that is just starting or ending"
_PROC = Path("/proc")


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
        if not here or self.started is None:
            return False
        started = _started(self.pid)
        return not _exists(self.pid) if started is None else started != self.started

    def runs_on_this_kernel(self) -> bool:
        """Whether its machine is this one and was not started anew, whatever the container."""
        return self.boot == _boot()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()  # Sandboxes hide it.


def _namespace() -> int:
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _started(pid: int) -> int | None:
    """Start of a process in ticks since boot; -1 of a zombie, None where none is to be seen."""
    try:
        # Its name in there may be cut within a letter.
        text = (_PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name, in parentheses, may itself hold spaces and parentheses: proc_pid_stat(5).
    fields = text.rpartition(b")")[2].split()
    return -1 if fields[0] in b"ZX" else int(fields[19])


def _exists(pid: int) -> bool:
    """Whether there is a process of this number, also where ``/proc`` hides those of others."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


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


def vanished(run_dir: str | Path) -> StorageError:
    """What a process gets to hear whose run folder was removed, renamed or replaced."""
    return StorageError(
        f"{run_dir}: the run folder is gone, or another one is in its place: it was removed, "
        f"renamed or mounted anew while the run went on, or its {LOCK}/ was. Nothing more was "
        "written. Next: bring it back to this place and run the same command again, which goes on "
        "from its newest whole checkpoint"
    )


def holder_of(storage: Storage, lease: str) -> Holder | None:
    """Who a lease belongs to; None when it is half written, damaged or gone."""
    try:
        return Holder(**unseal("lease", storage.read_file(lease, limit=MAX_BYTES)))
    except (UnusableError, OSError, TypeError):
        return None


def described(storage: Storage, lease: str) -> str:
    """Who a lease belongs to, in words."""
    return str(holder_of(storage, lease) or UNKNOWN)


def write_lease(storage: Storage, lease: str) -> None:
    """Write a lease that says that this process is the holder."""
    storage.write_file(lease, [seal("lease", asdict(Holder.this_process()))])


def sweep_older(storage: Storage, numbered: re.Pattern[str], token: int) -> None:
    """Delete leases and counters of earlier tokens.

    Args:
        storage: of the run.
        numbered: their names; the token is the first group.
        token: of the holder.
    """
    for entry in storage.list(LOCK):
        number = numbered.fullmatch(entry.name)
        if number and int(number[1]) < token:
            with suppress(OSError):
                storage.unlink(f"{LOCK}/{entry.name}")


class Fence(Protocol):
    """Raises, when called, if a run has been taken over; can be sent to workers."""

    @property
    def token(self) -> int:
        """Token of the holder on whose behalf the caller works."""

    def __call__(self) -> None:
        """Return if nobody took the run since.

        Raises:
            StorageError: somebody did.
        """


class LivingLock(ABC):
    """A lock whose holder gives signs of life; a context manager.

    Args:
        heartbeat: seconds between signs of life.
        patience: seconds without one after which the holder on another machine counts as dead.
    """

    #: Seconds between two looks at another's counter, at most.
    LOOK_SECONDS: ClassVar[float]
    #: What is held, in messages.
    THING: ClassVar[str]
    #: What to do where it cannot be locked.
    ADVICE: ClassVar[str]

    #: Storage of the run.
    storage: Storage

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

    def acquire(self) -> None:
        """Take the run.

        Raises:
            StorageError: a living process holds it, which is named; or it cannot be written.
        """
        try:
            self._take()
        except OSError as error:
            raise StorageError(
                f"{self.storage.describe('')}: cannot lock the {self.THING}: {error}. Next: see "
                f"that {self.ADVICE}"
            ) from error
        self._start_beating()

    def release(self) -> None:
        """Give the run back; nothing happens if it is not held."""
        if not self._is_held():
            return
        self._stop_beating()
        # What cannot be written is found out by the next one, by watching.
        with suppress(OSError):
            self._write_sign(RELEASED)
        self._forget()

    def advance(self) -> Fence:
        """Shut out every process that got an earlier fence, and return a new one.

        Call it before each new attempt: a worker of the last one that was only slow to die cannot
        commit any more.

        Raises:
            StorageError: the run was taken over.
        """
        with self._advancing:
            self.fence()()
            self._take_next()
        return self.fence()

    def require_held(self) -> None:
        """Raise :class:`StorageError` if the run was taken over.

        For threads beside the one that calls :meth:`advance`, which gives the run a new token in
        between.
        """
        with self._advancing:
            self.fence()()

    @abstractmethod
    def fence(self) -> Fence:
        """What a worker of this run checks before it changes anything; can be sent to workers."""

    @abstractmethod
    def _take(self) -> None:
        """Become the holder."""

    @abstractmethod
    def _take_next(self) -> None:
        """Become the holder with the next token, in place of oneself."""

    @abstractmethod
    def _is_held(self) -> bool:
        """Whether this process holds the run."""

    @abstractmethod
    def _forget(self) -> None:
        """Hold the run no longer, without a word to anybody."""

    @abstractmethod
    def _write_sign(self, content: bytes) -> None:
        """Write the counter, or that the run is given back.

        Raises:
            FileNotFoundError: the lease is gone for good.
            OSError: it cannot be written now.
        """

    def _beat(self) -> None:
        """Write the counter until told to stop."""
        count = 0
        while not self._stop.wait(self.heartbeat):
            count += 1
            with self._advancing:
                try:
                    self._write_sign(b"%d" % count)
                except FileNotFoundError:
                    # Taken over or gone; the fence stops whatever else this process tries.
                    return
                except OSError as error:
                    where = self.storage.describe("")
                    log.warning("%s: no sign of life written: %s", where, error)

    def _refusal(self, lease: str | None) -> HeldError:
        """What a process gets to hear that wants a run which is held.

        Args:
            lease: key of the holder's lease; None where it is not known.
        """
        who = "another process" if lease is None else described(self.storage, lease)
        return HeldError(
            f"{self.storage.describe('')}: in use by {who}. Two processes must not write one "
            f"{self.THING}. Next: wait for that process or stop it, or give this run another name"
        )

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
