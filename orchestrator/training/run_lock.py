"""One writer per run folder: who holds it, whether it still lives, and shutting out its ghosts.

Two things make the lock. ``lock/flock`` is locked with flock(2), which the kernel gives back the
moment its holder dies, however it dies. ``lock/lease-<token>.json``, made only if there is no such
file yet, numbers the holders and says who each is. The number is the fencing token: a process that
wakes up after its run was taken over finds a higher one and may not commit any more.

Among the processes of one machine flock is enough. Between machines an NFS mount may not pass it
on, so beside the lease lies ``lock/beat-<token>``, a counter that the holder raises every few
seconds. The lease of another machine that was not given back is watched for a while: a counter
that moves has a live holder, who is never robbed; one that stands still has a dead one. No clock of
one machine is ever compared with that of another.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import threading
import time
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from orchestrator.errors import StorageError
from orchestrator.training.manifest import UnusableError, seal, unseal
from orchestrator.training.storage import LocalStorage, make_private

log = logging.getLogger(__name__)

FOLDER = "lock"
_LEASE = re.compile(r"lease-(\d{9,})\.json")
_NUMBERED = re.compile(r"(?:lease|beat)-(\d{9,})(?:\.json)?")
_RELEASED = b"released"
_MAX_BYTES = 2**16

#: What flock says where it does not exist.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class HeldError(StorageError):
    """Another live process holds the run folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a run folder.

    Attributes:
        host: name of the machine.
        boot: identity of its running kernel.
        namespace: of its process numbers; containers have their own.
        pid: process on it.
        started: when the process began, in clock ticks since the machine did, which tells it from
            a later process with the same number; None where that cannot be found out.
        since: when it took the folder, by its clock; for people only.
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


@dataclass(frozen=True)
class Fence:
    """Raises, when called, if the run folder has been taken over; can be sent to workers.

    Attributes:
        run_dir: the run folder.
        token: of the holder on whose behalf the caller works.
    """

    run_dir: str
    token: int

    def __call__(self) -> None:
        """Return if nobody took the folder since ``token``.

        Raises:
            StorageError: somebody did.
        """
        storage = LocalStorage(self.run_dir)
        newest = _newest(storage)
        if newest > self.token:
            raise StorageError(
                f"{self.run_dir}: this process (token {self.token}) was shut out: the run now "
                f"belongs to {_describe(storage, newest)} (token {newest}). Nothing was written. "
                "Next: let that process go on; this one can be ended"
            )


class RunLock:
    """Holds a run folder for one process; a context manager.

    Args:
        run_dir: made if need be.
        heartbeat: seconds between signs of life.
        patience: seconds without one after which the holder on another machine counts as dead.
    """

    def __init__(
        self, run_dir: str | Path, *, heartbeat: float = 2.0, patience: float = 30.0
    ) -> None:
        self.storage = LocalStorage(run_dir)
        self.heartbeat = heartbeat
        self.patience = patience
        self.token = 0
        self._descriptor: int | None = None
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None
        self._advancing = threading.Lock()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the folder.

        Raises:
            StorageError: a living process holds it, which is named; or it cannot be written.
        """
        try:
            make_private(self.storage.root)
            self.storage.make_dir(FOLDER)
            self._descriptor = self._acquire()
        except OSError as error:
            raise StorageError(
                f"{self.storage.root}: cannot lock the run folder: {error}. Next: see that "
                "`storage` names a folder that can be written"
            ) from error
        self._stop.clear()
        self._beating = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._beating.start()
        _held.add(self)

    def release(self) -> None:
        """Give the folder back; nothing happens if it is not held."""
        if self._descriptor is None:
            return
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        # What cannot be written is found out by the next one, through flock or by watching.
        with suppress(OSError):
            self._write_beat(self.token, _RELEASED)
        self._forget()

    def fence(self) -> Fence:
        """What a worker of this run checks before it changes anything."""
        return Fence(str(self.storage.root), self.token)

    def advance(self) -> Fence:
        """Shut out every process that got an earlier fence, and return a new one.

        Call it before each new attempt: a worker of the last one that was only slow to die cannot
        commit any more.

        Raises:
            StorageError: the folder was taken over.
        """
        with self._advancing:
            self.fence()()
            self._claim(self.token + 1)
        return self.fence()

    def _acquire(self) -> int:
        path = self.storage.describe(f"{FOLDER}/flock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            flocked = self._flock(descriptor)
            newest = _newest(self.storage)
            if newest and not self._is_dead(newest, flocked):
                raise self._refusal(newest)
            self._claim(newest + 1)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _flock(self, descriptor: int) -> bool:
        """Lock the file; false where the file system has no such locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(_newest(self.storage)) from error
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return False
        return True

    def _is_dead(self, token: int, flocked: bool) -> bool:
        """Whether the holder of a lease gave it back or died."""
        if self._read_beat(token) == _RELEASED:
            return True
        holder = _holder(self.storage, token)
        if holder is not None and holder.boot == _boot():
            # On one kernel flock tells, whoever is in which container.
            if flocked:
                return True
            if holder.namespace == _namespace() and holder.started is not None:
                return _started(holder.pid) != holder.started
        log.warning(
            "%s was not given back by %s; watching for up to %g s whether it still lives",
            self.storage.root,
            _describe(self.storage, token),
            self.patience,
        )
        before = self._read_beat(token)
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self.heartbeat / 4))
            if _newest(self.storage) != token:
                return False
            beat = self._read_beat(token)
            if beat != before:
                return beat == _RELEASED
        return True

    def _claim(self, token: int) -> None:
        """Become the holder with number ``token``, if nobody else did."""
        lease = _lease_key(token)
        with suppress(FileExistsError):
            self._write_beat(token, b"0", create=True)
        try:
            self.storage.write_file(lease, [seal("lease", asdict(Holder.this_process()))])
        except FileExistsError as error:
            raise self._refusal(_newest(self.storage)) from error
        # The lease may be one that its holder had given up for a higher one meanwhile.
        newest = _newest(self.storage)
        if newest != token:
            self.storage.unlink(lease)
            raise self._refusal(newest)
        self.token = token
        for entry in self.storage.list(FOLDER):
            number = _NUMBERED.fullmatch(entry.name)
            if number and int(number[1]) < token:
                with suppress(OSError):
                    self.storage.unlink(f"{FOLDER}/{entry.name}")

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self.heartbeat):
            count += 1
            with self._advancing:
                try:
                    self._write_beat(self.token, b"%d" % count)
                except FileNotFoundError:
                    return  # Taken over; the fence stops whatever else this process tries.
                except OSError as error:
                    log.warning("%s: no sign of life written: %s", self.storage.root, error)

    def _write_beat(self, token: int, content: bytes, *, create: bool = False) -> None:
        path = self.storage.describe(_beat_key(token))
        flags = (
            os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        )
        descriptor = os.open(path, flags, 0o666)
        try:
            # In place: a folder entry changed every few seconds would cost two flushes each time.
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        finally:
            os.close(descriptor)

    def _read_beat(self, token: int) -> bytes:
        try:
            return self.storage.read_file(_beat_key(token), limit=_MAX_BYTES)
        except FileNotFoundError:
            return b""

    def _refusal(self, token: int) -> HeldError:
        return HeldError(
            f"{self.storage.root}: in use by {_describe(self.storage, token)}. Two processes must "
            "not write one run folder. Next: wait for that process or stop it, or give this run "
            "another name"
        )

    def _forget(self) -> None:
        """Drop the lock without touching the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        _held.discard(self)


def _lease_key(token: int) -> str:
    return f"{FOLDER}/lease-{token:09d}.json"


def _beat_key(token: int) -> str:
    return f"{FOLDER}/beat-{token:09d}"


def _newest(storage: LocalStorage) -> int:
    """Highest token there is a lease for; 0 without any."""
    found = (_LEASE.fullmatch(entry.name) for entry in storage.list(FOLDER))
    return max((int(match[1]) for match in found if match), default=0)


def _holder(storage: LocalStorage, token: int) -> Holder | None:
    """Who a lease belongs to; None when it is half written or gone."""
    try:
        return Holder(**unseal("lease", storage.read_file(_lease_key(token), limit=_MAX_BYTES)))
    except (UnusableError, OSError, TypeError):
        return None


def _describe(storage: LocalStorage, token: int) -> str:
    return str(_holder(storage, token) or "a process that is just starting or ending")


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_all() -> None:
    """A forked child does not hold its parent's locks, and must not outlive them with flock."""
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)
