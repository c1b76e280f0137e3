"""A storage that fails, or kills its process, at a chosen call, and healthy ones to put in it."""

from __future__ import annotations

import errno
import io
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow.fs

from orchestrator.storage.bucket import ObjectStorage
from orchestrator.storage.local import Chunk, Entry, LocalStorage, OpenFile, Storage

#: Where in a call it strikes: before it does anything, in the middle (half of the bytes are
#: written), or after it did its work but before the caller learns so.
Moment = Literal["before", "within", "after"]


class QuickStorage(LocalStorage):
    """Does not wait for the disk: what a killed process wrote is in the kernel's hands anyway."""

    def sync(self, file: OpenFile) -> None:
        pass

    def sync_dir(self, key: str) -> None:
        with self._open(key, os.O_DIRECTORY):
            pass


class BucketStorage(ObjectStorage):
    """A folder that behaves like a bucket: an object appears, whole, when its upload is closed."""

    def __init__(self, path: Path) -> None:
        path.mkdir(exist_ok=True)
        super().__init__(pyarrow.fs.LocalFileSystem(), str(path), f"s3:/{path}")
        self.uploads = path.parent

    def create(self, key: str) -> OpenFile:
        return OpenFile(key, io.BytesIO())

    def close(self, file: OpenFile) -> None:
        upload = self.uploads / uuid.uuid4().hex
        upload.write_bytes(file.raw.getvalue())
        upload.replace(self._path(file.key))

    def list(self, key: str) -> list[Entry]:
        try:
            return super().list(key)
        except FileNotFoundError:
            # Made between pyarrow's two looks at it; a bucket has no folders that could be.
            return super().list(key)


def lose_unsynced(path: Path, calls: list[str]) -> None:
    """What a power cut does after ``calls``: names stay, content that was not synced is gone."""
    unsynced: set[str] = set()
    for call in calls:
        name, *keys = call.split()
        if name == "create":
            unsynced.add(keys[0])
        elif name == "sync":
            unsynced.discard(keys[0])
        elif name == "rename":
            source, target = keys
            moved = {key for key in unsynced if f"{key}/".startswith(f"{source}/")}
            unsynced = (unsynced - moved) | {target + key[len(source) :] for key in moved}
    for key in unsynced:
        if (path / key).exists():
            (path / key).write_bytes(b"")


class FaultyStorage(Storage):
    """Passes every primitive on to ``inner`` and counts them.

    Args:
        inner: a healthy storage.
        strike_at: number of the call, from 0, that goes wrong; None for none.
        moment: see ``Moment``.
        kill: end the process with SIGKILL instead of raising.
        lasting: every later call fails as well, like a disk that stays full.
        code: errno of what is raised.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        strike_at: int | None = None,
        moment: Moment = "before",
        kill: bool = False,
        lasting: bool = False,
        code: int = errno.EIO,
    ) -> None:
        self.inner = inner
        self.renames = inner.renames  # type: ignore[misc]
        self.strike_at = strike_at
        self.moment = moment
        self.kill = kill
        self.lasting = lasting
        self.code = code
        self.calls: list[str] = []

    def describe(self, key: str) -> str:
        return self.inner.describe(key)

    def _strikes(self, name: str, key: str) -> bool:
        number = len(self.calls)
        self.calls.append(f"{name} {key}")
        if self.strike_at is None:
            return False
        return number == self.strike_at or (self.lasting and number > self.strike_at)

    def _strike(self) -> None:
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.code, os.strerror(self.code))

    def _call(self, name: str, key: str, *arguments: Any) -> Any:
        strikes = self._strikes(name, key)
        if strikes and self.moment != "after":
            self._strike()
        result = getattr(self.inner, name)(*arguments)
        if strikes:
            self._strike()
        return result

    def make_dir(self, key: str) -> bool:
        return bool(self._call("make_dir", key, key))

    def create(self, key: str) -> OpenFile:
        file: OpenFile = self._call("create", key, key)
        return file

    def write(self, file: OpenFile, data: Chunk) -> None:
        strikes = self._strikes("write", file.key)
        if strikes and self.moment == "within":
            self.inner.write(file, memoryview(data)[: len(data) // 2])
        if strikes and self.moment != "after":
            self._strike()
        self.inner.write(file, data)
        if strikes:
            self._strike()

    def sync(self, file: OpenFile) -> None:
        self._call("sync", file.key, file)

    def close(self, file: OpenFile) -> None:
        # A descriptor is closed even when close() fails; tests must not leak what Linux would not.
        strikes = self._strikes("close", file.key)
        if strikes and self.kill and self.moment != "after":
            self._strike()
        self.inner.close(file)
        if strikes:
            self._strike()

    def sync_dir(self, key: str) -> None:
        self._call("sync_dir", key, key)

    def rename(self, source: str, target: str) -> None:
        self._call("rename", f"{source} {target}", source, target)

    def unlink(self, key: str) -> None:
        self._call("unlink", key, key)

    def remove_dir(self, key: str) -> None:
        self._call("remove_dir", key, key)

    def list(self, key: str) -> list[Entry]:
        entries: list[Entry] = self._call("list", key, key)
        return entries

    def read(self, key: str) -> Iterator[bytes]:
        strikes = self._strikes("read", key)
        if strikes and self.moment == "before":
            self._strike()
        for chunk in self.inner.read(key):
            if strikes and self.moment == "within":
                yield chunk[: len(chunk) // 2]
                self._strike()
            yield chunk
        if strikes:
            self._strike()
