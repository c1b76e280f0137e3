"""The run folder of a driver whose disk the workers do not see, behind an actor on its node.

The actor does for the workers what they would do to a shared folder: it writes the commits that
arrive in pieces, appends to the event log, takes signs of life, and says whether somebody has asked
the run to stop or has judged it. There is one for each attempt. It ends with the attempt, so a
worker that was given up but still runs has nobody to write through; and it looks at the fence
before it changes anything, so neither has a driver that was given up.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.nodes import this_node
from orchestrator.storage.local import (
    CHUNK_BYTES,
    Chunk,
    Entry,
    LocalStorage,
    OpenFile,
    Storage,
)
from orchestrator.storage.run_files import DECISIONS, STOP

#: Groups of calls that wait for no others than their own.
_READS, _SIGNS = "reads", "signs"
#: Pieces of a file that are on their way at a time.
_IN_FLIGHT = 4
_START_SECONDS = 120.0
#: No call of the actor takes longer, a flush of a large file to a slow disk included.
_ANSWER_SECONDS = 300.0


class DriverLostError(RuntimeError):
    """The driver's node does not answer, so nothing can be written; no fault of the storage."""


class _Arriving:
    """A file that a worker sends."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.digest = hashlib.sha256()


class Control:
    """What the actor does; see the module. Every call is one of a worker, or of the driver.

    Args:
        run_dir: of the run, on this node.
        fence: raises when the driver has lost the right to write there.
    """

    def __init__(self, run_dir: str, fence: Callable[[], None]) -> None:
        self._storage = LocalStorage(run_dir)
        self._fence = fence
        self._arriving: dict[int, _Arriving] = {}
        self._number = 0
        self._changing = threading.Lock()

    def check_fence(self) -> None:
        """See :class:`~orchestrator.storage.folder_lock.FolderFence`."""
        self._fence()

    def create(self, key: str) -> int:
        """Open a new file; returns its number for the calls that follow."""
        file = self._storage.create(key)
        self._number += 1
        self._arriving[self._number] = _Arriving(file)
        return self._number

    def write(self, number: int, data: bytes) -> None:
        """Append."""
        arriving = self._arriving[number]
        arriving.digest.update(data)
        self._storage.write(arriving.file, data)

    def sync(self, number: int) -> None:
        """Flush to the disk."""
        self._storage.sync(self._arriving[number].file)

    def close(self, number: int) -> str:
        """Finish a file; returns the SHA-256, in hex, of what has arrived."""
        arriving = self._arriving.pop(number)
        self._storage.close(arriving.file)
        return arriving.digest.hexdigest()

    def change(self, what: str, *keys: str) -> Any:
        """``make_dir``, ``sync_dir``, ``rename``, ``unlink`` or ``remove_dir``."""
        if what != "sync_dir":
            self._fence()
        return getattr(self._storage, what)(*keys)

    def append(self, key: str, offset: int, data: bytes) -> None:
        """Append whole lines to a log, and flush them to the disk.

        Args:
            key: of the log.
            offset: where ``data`` begins. Behind it there may be part of a line, never a whole one.
            data: ends with a line feed.

        Raises:
            OSError: the log has other lines than the caller knows of.
        """
        self._fence()
        path = Path(self._storage.describe(key))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(offset, size))
            if size < offset or b"\n" in file.read():
                raise OSError(f"{path} has {size} bytes; lines were to follow byte {offset}")
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def list(self, key: str) -> list[Entry]:
        """What a folder holds."""
        return self._storage.list(key)

    def read_at(self, key: str, offset: int) -> bytes:
        """A piece of a file; empty behind its end."""
        return self._storage.read_at(key, offset, CHUNK_BYTES)

    def sign(self, folder: str, name: str, text: str | None) -> None:
        """Write a sign of life where the driver looks for it, or remove it."""
        path = Path(folder) / name
        with suppress(OSError):
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def wishes(self, known: frozenset[str]) -> tuple[bool, dict[str, bytes]]:
        """Whether the run is to stop, and verdicts by file name without those that are known."""
        root = self._storage.root
        verdicts = {}
        with suppress(OSError):
            for file in (root / DECISIONS).iterdir():
                if file.name not in known and not file.name.startswith("."):
                    verdicts[file.name] = file.read_bytes()
        return (root / STOP).exists(), verdicts


def start_control(run_dir: Path, fence: Callable[[], None]) -> Any:
    """The actor of a new attempt, on the node of this process.

    Raises:
        DriverLostError: it does not start.
    """
    actor = ray.remote(
        num_cpus=0,
        max_restarts=0,
        # What writes is done one after the other, in the order in which it was asked for.
        concurrency_groups={_READS: 8, _SIGNS: 2},
        scheduling_strategy=NodeAffinitySchedulingStrategy(this_node(), soft=False),
    )(Control).remote(str(run_dir), fence)
    if not ray.wait([actor.__ray_ready__.remote()], timeout=_START_SECONDS)[0]:
        ray.kill(actor)
        raise DriverLostError(
            f"no process could be started beside the driver within {_START_SECONDS:g} s"
        )
    return actor


def ask(reference: Any) -> Any:
    """What the actor answers.

    Raises:
        DriverLostError: it is gone or cannot be reached.
        Exception: what the call itself raised there, as it was.
    """
    try:
        return ray.get(reference, timeout=_ANSWER_SECONDS)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, Exception):
            raise cause from None
        raise
    except RayError as error:
        raise DriverLostError(
            f"the driver's node does not answer ({str(error).splitlines()[0]})"
        ) from error


def _reading(method: Any) -> Any:
    return method.options(concurrency_group=_READS)


def signing(method: Any) -> Any:
    """A method of the actor that is not to wait for what is written or read."""
    return method.options(concurrency_group=_SIGNS)


@dataclass(frozen=True)
class RelayedFence:
    """The fence of the run folder, asked through the actor."""

    control: Any

    def __call__(self) -> None:
        """Return if the run is still the driver's.

        Raises:
            StorageError: it is not.
        """
        ask(self.control.check_fence.remote())


@dataclass
class _Sending:
    """A file on its way: its number there, what is in flight, and what was sent so far."""

    number: int
    flying: list[Any]
    digest: Any


class RelayedStorage(Storage):
    """The run folder of a driver on another node; picklable.

    Reads wait for no writes: several ranks read a commit at a time.

    Args:
        control: the actor.
        run_dir: the folder, as the driver knows it.
    """

    renames: ClassVar[bool] = True

    def __init__(self, control: Any, run_dir: str) -> None:
        self.control = control
        self.run_dir = Path(run_dir)

    def describe(self, key: str) -> str:
        """Path of ``key`` on the driver's node."""
        return str(self.run_dir / key)

    def _change(self, what: str, *keys: str) -> Any:
        return ask(self.control.change.remote(what, *keys))

    def make_dir(self, key: str) -> bool:
        """Create a folder."""
        return bool(self._change("make_dir", key))

    def create(self, key: str) -> OpenFile:
        """Open a new file there."""
        number = ask(self.control.create.remote(key))
        return OpenFile(key, _Sending(number, [], hashlib.sha256()))

    def write(self, file: OpenFile, data: Chunk) -> None:
        """Send ``data``; a few pieces are on their way at a time."""
        sending: _Sending = file.raw
        view = memoryview(data)
        for start in range(0, len(view), CHUNK_BYTES):
            piece = bytes(view[start : start + CHUNK_BYTES])
            sending.digest.update(piece)
            sending.flying.append(self.control.write.remote(sending.number, piece))
            if len(sending.flying) > _IN_FLIGHT:
                ask(sending.flying.pop(0))

    def _arrived(self, file: OpenFile) -> None:
        flying, file.raw.flying = file.raw.flying, []
        for reference in flying:
            ask(reference)

    def sync(self, file: OpenFile) -> None:
        """Return once all of it is on the driver's disk."""
        self._arrived(file)
        ask(self.control.sync.remote(file.raw.number))

    def close(self, file: OpenFile) -> None:
        """Finish the file, and compare what has arrived with what was sent.

        Raises:
            OSError: it is not the same.
        """
        try:
            self._arrived(file)
        finally:
            arrived = ask(self.control.close.remote(file.raw.number))
        if arrived != file.raw.digest.hexdigest():
            raise OSError(f"{self.describe(file.key)}: did not arrive as it was sent")

    def sync_dir(self, key: str) -> None:
        """Flush a folder's names to the driver's disk."""
        self._change("sync_dir", key)

    def rename(self, source: str, target: str) -> None:
        """Move atomically."""
        self._change("rename", source, target)

    def unlink(self, key: str) -> None:
        """Delete a file."""
        self._change("unlink", key)

    def remove_dir(self, key: str) -> None:
        """Delete an empty folder."""
        self._change("remove_dir", key)

    def list(self, key: str) -> list[Entry]:
        """What a folder holds, by name."""
        entries: list[Entry] = ask(_reading(self.control.list).remote(key))
        return entries

    def read(self, key: str) -> Iterator[bytes]:
        """A file's bytes; the next piece is under way while one is used."""
        offset = 0
        read_at = _reading(self.control.read_at)
        coming = read_at.remote(key, 0)
        while piece := ask(coming):
            offset += len(piece)
            coming = read_at.remote(key, offset)
            yield piece
