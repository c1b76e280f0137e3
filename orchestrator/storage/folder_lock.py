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
import os
import re
import weakref
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.storage.lease import (
    MAX_BYTES,
    RELEASED,
    LivingLock,
    described,
    holder_of,
    shut_out,
    sweep_older,
    vanished,
    write_lease,
)
from orchestrator.storage.local import LocalStorage, make_private
from orchestrator.storage.run_files import LOCK

_LEASE = re.compile(r"lease-(\d{9,})\.json")
_NUMBERED = re.compile(r"(?:lease|beat)-(\d{9,})(?:\.json)?")

#: What flock says where it does not exist.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@dataclass(frozen=True)
class FolderFence:
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
            StorageError: somebody did; or the folder is not the one that was taken: it has no
                lease at all.
        """
        storage = LocalStorage(self.run_dir)
        newest = _newest(storage)
        if newest > self.token:
            raise shut_out(self.run_dir, self.token, newest, described(storage, _lease_key(newest)))
        # A listing that is cached elsewhere may lack the newest lease, but not all of them.
        if newest == 0:
            raise vanished(self.run_dir)


class RunLock(LivingLock):
    """Holds a run folder for one process; a context manager.

    Args:
        run_dir: made if need be.
        heartbeat: seconds between signs of life.
        patience: seconds without one after which the holder on another machine counts as dead.
    """

    LOOK_SECONDS = 0.5
    THING = "run folder"
    ADVICE = "`storage` names a folder that can be written"

    storage: LocalStorage

    def __init__(
        self, run_dir: str | Path, *, heartbeat: float = 2.0, patience: float = 30.0
    ) -> None:
        super().__init__(heartbeat=heartbeat, patience=patience)
        self.storage = LocalStorage(run_dir)
        self.token = 0
        self._descriptor: int | None = None

    def fence(self) -> FolderFence:
        """What a worker of this run checks before it changes anything."""
        return FolderFence(str(self.storage.root), self.token)

    def require_in_place(self) -> None:
        """Raise unless the run folder is held, and is the one that was taken.

        A copy of it, put or mounted in its place, has the same leases.

        Raises:
            StorageError: it was taken over; or is gone, or another one.
        """
        self.fence()()
        try:
            there = os.lstat(self.storage.describe(f"{LOCK}/flock"))
        except OSError as error:
            raise vanished(self.storage.root) from error
        if self._descriptor is None or not os.path.samestat(there, os.fstat(self._descriptor)):
            raise vanished(self.storage.root)

    def _take(self) -> None:
        make_private(self.storage.root)
        self.storage.make_dir(LOCK)
        self._descriptor = self._acquire()
        _held.add(self)

    def _take_next(self) -> None:
        self._claim(self.token + 1)

    def _is_held(self) -> bool:
        return self._descriptor is not None

    def _acquire(self) -> int:
        path = self.storage.describe(f"{LOCK}/flock")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            flocked = self._flock(descriptor)
            newest = _newest(self.storage)
            if newest and not self._is_dead(newest, flocked):
                raise self._refusal(_lease_key(newest))
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
            raise self._refusal(_lease_key(_newest(self.storage))) from error
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            return False
        return True

    def _is_dead(self, token: int, flocked: bool) -> bool:
        """Whether the holder of a lease gave it back or died."""
        if self._read_beat(token) == RELEASED:
            return True
        holder = holder_of(self.storage, _lease_key(token))
        if holder is not None and holder.runs_on_this_kernel():
            # On one kernel flock tells, whoever is in which container.
            if flocked:
                return True
            if holder.is_here():
                return False
            if holder.ended_here():
                return True
        return self._stands_still(
            str(self.storage.root),
            described(self.storage, _lease_key(token)),
            read=lambda: self._read_beat(token),
            is_newest=lambda: _newest(self.storage) == token,
        )

    def _claim(self, token: int) -> None:
        """Become the holder with number ``token``, if nobody else did."""
        lease = _lease_key(token)
        with suppress(FileExistsError):
            self._write_beat(token, b"0", create=True)
        try:
            write_lease(self.storage, lease)
        except FileExistsError as error:
            raise self._refusal(_lease_key(_newest(self.storage))) from error
        # The lease may be one that its holder had given up for a higher one meanwhile.
        newest = _newest(self.storage)
        if newest != token:
            self.storage.unlink(lease)
            raise self._refusal(_lease_key(newest))
        self.token = token
        sweep_older(self.storage, _NUMBERED, token)

    def _write_sign(self, content: bytes) -> None:
        self._write_beat(self.token, content)

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
            return self.storage.read_file(_beat_key(token), limit=MAX_BYTES)
        except FileNotFoundError:
            return b""

    def _forget(self) -> None:
        """Drop the lock without touching the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        _held.discard(self)


def _lease_key(token: int) -> str:
    return f"{LOCK}/lease-{token:09d}.json"


def _beat_key(token: int) -> str:
    return f"{LOCK}/beat-{token:09d}"


def _newest(storage: LocalStorage) -> int:
    """Highest token there is a lease for; 0 without any."""
    found = (_LEASE.fullmatch(entry.name) for entry in storage.list(LOCK))
    return max((int(match[1]) for match in found if match), default=0)


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _forget_all() -> None:
    """A forked child does not hold its parent's locks, and must not outlive them with flock."""
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)
