"""Where a run's files live, as a handful of calls that tests can make fail one by one.

Everything the commit protocol does to a disk goes through the primitives of :class:`Storage`.
Each is one system call or close to it, so a test subclass that fails, or kills the process, at the
i-th call visits every crash point of the protocol.

A *key* is a relative path with forward slashes, ``ckpt/000000010/state.json``. Primitives raise
:class:`OSError`; turning that into advice for a user is their caller's business.
"""

from __future__ import annotations

import errno
import os
import stat
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeAlias

from orchestrator.errors import SecurityError, StorageError
from orchestrator.storage.address import TEMPORARY

Chunk: TypeAlias = bytes | memoryview

#: Bytes read or written by one call.
CHUNK_BYTES = 4 * 2**20


class Entry(NamedTuple):
    """One name in a folder.

    Attributes:
        name: without its folder.
        is_dir: whether it is a folder; a symbolic link never is.
        size: in bytes; of no meaning for folders.
    """

    name: str
    is_dir: bool
    size: int


@dataclass
class OpenFile:
    """A new file being written.

    Attributes:
        key: its name.
        raw: what the backend writes to.
    """

    key: str
    raw: Any


def temporary(key: str) -> str:
    """A fresh name beside ``key`` for something that is not there yet."""
    return f"{key}{TEMPORARY}{uuid.uuid4().hex}"


def split_key(key: str) -> list[str]:
    """Parts of a key; the empty key, which names the root, has none.

    Raises:
        SecurityError: a part that would lead out of the root.
    """
    parts = key.split("/") if key else []
    for part in parts:
        if part in ("", ".", "..") or "\0" in part or "\\" in part:
            raise SecurityError(f"storage: {key!r} is not a relative path inside the run folder")
    return parts


class Storage(ABC):
    """Primitive calls, and what is made of them.

    Attributes:
        renames: whether :meth:`rename` is there and atomic. Where it is not, a folder counts as
            complete once its manifest, written last, is there.
    """

    renames: ClassVar[bool]

    @abstractmethod
    def describe(self, key: str) -> str:
        """Full path or URI of ``key``, for people and other programs."""

    @abstractmethod
    def make_dir(self, key: str) -> bool:
        """Create a folder, and the root if need be; false when it was there already."""

    @abstractmethod
    def create(self, key: str) -> OpenFile:
        """Open a new file for writing. With ``renames`` a file that exists is an error."""

    @abstractmethod
    def write(self, file: OpenFile, data: Chunk) -> None:
        """Append all of ``data``."""

    @abstractmethod
    def sync(self, file: OpenFile) -> None:
        """Return once what was written would survive a power cut."""

    @abstractmethod
    def close(self, file: OpenFile) -> None:
        """Finish the file."""

    @abstractmethod
    def sync_dir(self, key: str) -> None:
        """Return once the names in a folder would survive a power cut."""

    @abstractmethod
    def rename(self, source: str, target: str) -> None:
        """Move a file, replacing ``target``, or a folder to a name that is free; atomically."""

    @abstractmethod
    def unlink(self, key: str) -> None:
        """Delete a file."""

    @abstractmethod
    def remove_dir(self, key: str) -> None:
        """Delete an empty folder."""

    @abstractmethod
    def list(self, key: str) -> list[Entry]:
        """What a folder holds, by name; nothing when there is no such folder."""

    @abstractmethod
    def read(self, key: str) -> Iterator[bytes]:
        """A file's bytes in pieces of at most ``CHUNK_BYTES``."""

    def write_file(self, key: str, chunks: Iterable[Chunk]) -> None:
        """Write a new file and make its content durable."""
        file = self.create(key)
        try:
            for chunk in chunks:
                self.write(file, chunk)
            self.sync(file)
        finally:
            self.close(file)

    def replace_file(self, key: str, data: bytes) -> None:
        """Give a small file new content; a reader sees the old or the new one, never a mixture."""
        if not self.renames:
            self.write_file(key, [data])
            return
        fresh = temporary(key)
        self.write_file(fresh, [data])
        self.rename(fresh, key)
        self.sync_dir(key.rpartition("/")[0])

    def read_file(self, key: str, *, limit: int) -> bytes:
        """The whole of a file that holds at most ``limit`` bytes.

        Raises:
            StorageError: it holds more.
        """
        content = bytearray()
        for chunk in self.read(key):
            content += chunk
            if len(content) > limit:
                raise StorageError(f"{self.describe(key)}: more than the {limit} bytes expected")
        return bytes(content)

    def remove_tree(self, key: str, *, first: str | None = None) -> None:
        """Delete a folder and all in it.

        Args:
            key: the folder.
            first: file to delete before all others, if it is there.
        """
        entries = sorted(self.list(key), key=lambda entry: entry.name != first)
        for entry in entries:
            inner = f"{key}/{entry.name}"
            if entry.is_dir:
                self.remove_tree(inner)
            else:
                self.unlink(inner)
        self.remove_dir(key)


class LocalStorage(Storage):
    """A folder on a local disk or an NFS mount.

    No component of a key may be a symbolic link: each is opened relative to the one before it.

    Args:
        root: the run folder; made with mode 0700 when the first folder in it is. Once it was met,
            it is made no more, and another folder in its place is refused.
    """

    renames = True

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        #: Device and number of the root, once it was met.
        self._met: tuple[int, int] | None = None

    def describe(self, key: str) -> str:
        """Absolute path of ``key``."""
        return str(self.root / key)

    @contextmanager
    def _parent(self, key: str) -> Iterator[tuple[int, str]]:
        """Descriptor of the folder that holds ``key``, and the name in it; "." for the root."""
        *folders, name = split_key(key) or ["."]
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(self.root, flags)
        try:
            self._meet(descriptor)
            for folder in folders:
                inner = os.open(folder, flags | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, name
        except OSError as error:
            # Relative to a descriptor, a name says nothing to anybody.
            if isinstance(error.filename, str) and not Path(error.filename).is_absolute():
                error.filename = self.describe(key)
            raise
        finally:
            os.close(descriptor)

    def _meet(self, descriptor: int) -> None:
        """Raise if the root is not the folder that it was before."""
        found = os.fstat(descriptor)
        met = (found.st_dev, found.st_ino)
        if self._met not in (None, met):
            raise OSError(
                errno.ESTALE, "another folder is in the place of this one", str(self.root)
            )
        self._met = met

    def make_dir(self, key: str) -> bool:
        """Create a folder."""
        if self._met is None:
            make_private(self.root)
        with self._parent(key) as (folder, name):
            try:
                os.mkdir(name, dir_fd=folder)
            except FileExistsError:
                return False
        return True

    def create(self, key: str) -> OpenFile:
        """Open a new file for writing."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._parent(key) as (folder, name):
            return OpenFile(key, os.open(name, flags, 0o666, dir_fd=folder))

    def write(self, file: OpenFile, data: Chunk) -> None:
        """Append all of ``data``."""
        view = memoryview(data)
        while view:
            view = view[os.write(file.raw, view) :]

    def sync(self, file: OpenFile) -> None:
        """Flush the file to the disk."""
        os.fsync(file.raw)

    def close(self, file: OpenFile) -> None:
        """Close the descriptor; NFS reports a full disk here."""
        os.close(file.raw)

    def sync_dir(self, key: str) -> None:
        """Flush a folder's names to the disk."""
        with self._open(key, os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)

    def rename(self, source: str, target: str) -> None:
        """Move atomically."""
        with self._parent(source) as (a, old), self._parent(target) as (b, new):
            os.rename(old, new, src_dir_fd=a, dst_dir_fd=b)

    def unlink(self, key: str) -> None:
        """Delete a file or a symbolic link."""
        with self._parent(key) as (folder, name):
            os.unlink(name, dir_fd=folder)

    def remove_dir(self, key: str) -> None:
        """Delete an empty folder."""
        with self._parent(key) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def list(self, key: str) -> list[Entry]:
        """What a folder holds, by name; what goes away meanwhile may be left out."""
        entries = []
        try:
            with self._open(key, os.O_DIRECTORY) as descriptor, os.scandir(descriptor) as found:
                for item in found:
                    # One that was renamed or deleted since says nothing about the others.
                    with suppress(FileNotFoundError):
                        size = item.stat(follow_symlinks=False).st_size
                        entries.append(Entry(item.name, item.is_dir(follow_symlinks=False), size))
        except FileNotFoundError:
            return []
        return sorted(entries)

    def read(self, key: str) -> Iterator[bytes]:
        """A regular file's bytes; a pipe or device put in its place is refused, not waited for."""
        with self._open(key, os.O_NONBLOCK) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self.describe(key)} is not a regular file")
            while chunk := os.read(descriptor, CHUNK_BYTES):
                yield chunk

    def read_at(self, key: str, offset: int, size: int) -> bytes:
        """At most ``size`` bytes of a regular file from ``offset`` on; empty behind its end."""
        with self._open(key, os.O_NONBLOCK) as descriptor:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{self.describe(key)} is not a regular file")
            return os.pread(descriptor, size, offset)

    @contextmanager
    def _open(self, key: str, flags: int) -> Iterator[int]:
        with self._parent(key) as (folder, name):
            descriptor = os.open(
                name, flags | os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def make_private(path: Path) -> None:
    """Create ``path``, for its owner alone, and the folders above it; leave it if it is there."""
    if path.is_dir():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
