"""Images inside shards: where each one lies, and getting at its bytes.

The manifest of a set of shards knows at which byte of its Parquet file each encoded image begins,
so reading one needs neither Parquet nor the rest of a row group. Shards on a file system are read
where they are; the page cache is what processes of a node share. Shards in a bucket are fetched
whole, from beginning to end, into a folder of the node, which all its processes share and which
holds no more shards than the window of the schedule needs.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.columns import ManifestFile, with_columns
from orchestrator.data.node_cache import another, fetch, private_folder
from orchestrator.errors import DataError
from orchestrator.storage.folders import Folder, open_folder, storage_errors

_OPEN_FILES = 128
_FETCHES = 8


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


@dataclass(frozen=True, eq=False)
class ShardedImages:
    """The encoded images of a data set, image by image.

    Shape legend: n images, s shards.

    Attributes:
        location: folder of the shards, a path or URI.
        digest: of the manifest that the shards were written from.
        shard: (n,) int32 shard that holds each image, never decreasing.
        offset: (n,) int64 byte of the shard at which the image begins.
        length: (n,) int64 bytes; 0 for an image that was missing.
        crc: (n,) uint32 CRC-32 of these bytes.
        sound: (n,) bool: whether the image could be used when it was stored.
        sizes: (s,) int64 bytes of each shard.
        sha256: of each shard.
        cache: folder of a node that shards of a bucket are fetched to; None: below the temporary
            folder.
        kept: shards that folder may hold; None for all.
        manifest: of the shards, which every process maps for itself.
    """

    location: str
    digest: str
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    crc: NDArray[np.uint32]
    sound: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    sha256: tuple[str, ...]
    cache: str | None = None
    kept: int | None = None
    manifest: ManifestFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Columns of a manifest are not sent, but their places."""
        state = dict(self.__dict__)
        return state if self.manifest is None else self.manifest.without_columns(state)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(with_columns(state))

    @cached_property
    def bounds(self) -> NDArray[np.int64]:
        """(s + 1,) first image of each shard, and n."""
        numbers = np.arange(len(self.sizes) + 1)
        return np.searchsorted(self.shard, numbers).astype(np.int64, copy=False)

    def place(self, index: int) -> str:
        """The shard of an image, for messages."""
        return self._path(int(self.shard[index]))

    def _path(self, number: int) -> str:
        return _folder(self.location).path(shard_name(number))

    def read(self, index: int) -> bytes:
        """The encoded bytes of image ``index``; empty for one that was missing.

        Raises:
            DamagedError: they are not what was stored.
            DataError: the shard is missing or another one.
            StorageError: the shard cannot be read.
        """
        length = int(self.length[index])
        if length == 0:
            return b""
        data = self._open(int(self.shard[index])).read(int(self.offset[index]), length)
        if len(data) != length or zlib.crc32(data) != int(self.crc[index]):
            raise DamagedError(f"{self.place(index)}: does not hold the bytes that were stored")
        return data

    def fetch(self, indices: NDArray[np.int64]) -> None:
        """Have the shards of these images on this node, those of a bucket side by side."""
        if _folder(self.location).local is not None:
            return
        wanted = np.unique(self.shard[indices]).tolist()
        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="shards") as pool:
            list(pool.map(self._open, wanted))

    def _open(self, number: int) -> _File:
        folder = _folder(self.location)
        try:
            if folder.local is not None:
                return _opened(folder.local / shard_name(number), int(self.sizes[number]))
            while True:
                # Between the two calls another process may have made room.
                with suppress(FileNotFoundError):
                    return _opened(self._cached(folder, number), int(self.sizes[number]))
        except FileNotFoundError as error:
            raise DataError(_gone(self._path(number))) from error

    def _cached(self, folder: Folder, number: int) -> Path:
        """The shard as a file of this node, fetched by the first process that asks for it."""
        home = private_folder(self.cache) / self.digest[:16]
        target = home / f"{self.sha256[number][:16]}.parquet"
        try:
            if fetch(folder, shard_name(number), self.sha256[number], target):
                self._make_room(home, target)
        except FileNotFoundError as error:
            raise DataError(_gone(self._path(number))) from error
        return target

    def _make_room(self, home: Path, newest: Path) -> None:
        """Delete what was not used for longest; who still reads it keeps it open."""
        if self.kept is None:
            return
        oldest_first = sorted((_used(path), path) for path in home.glob("*.parquet"))
        for _, path in oldest_first[: max(0, len(oldest_first) - self.kept)]:
            if path != newest:
                path.unlink(missing_ok=True)


class DamagedError(DataError):
    """Stored bytes of one image have changed."""


class _File:
    """An open file, read at any place by any thread."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)

    def __del__(self) -> None:
        # Threads may still read from a file that is no longer among the open ones.
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


_files: OrderedDict[Path, _File] = OrderedDict()
_files_lock = threading.Lock()


def _opened(path: Path, size: int) -> _File:
    """The file, kept open for the next image of it.

    Raises:
        FileNotFoundError: it is missing.
        DataError: it is not of the expected size.
        StorageError: it cannot be opened.
    """
    with _files_lock:
        file = _files.get(path)
        if file is not None:
            _files.move_to_end(path)
            return file
    with storage_errors(str(path)):
        file = _File(path)
    if file.size != size:
        raise DataError(another(str(path), f"{size} bytes", f"{file.size} bytes"))
    with _files_lock:
        _files[path] = file
        while len(_files) > _OPEN_FILES:
            _files.popitem(last=False)
    return file


@lru_cache(maxsize=8)
def _folder(location: str) -> Folder:
    return open_folder(location)


def _used(path: Path) -> int:
    """When the file was used last; long ago if it has gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _gone(path: str) -> str:
    return f"{path}: the shard is missing\nrun orchestrator shard again; it adds what is missing"
