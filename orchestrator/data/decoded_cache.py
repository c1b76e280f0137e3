"""Decoded images of a node on its disk, for data sets that fit: decoded once, mapped ever after.

An entry is the very pixels that decoding gave, under a name that holds everything they follow from,
so whoever finds it gets the same bytes as without. Entries are put there in one piece and never
changed; when the limit is reached no more are added. Of a mapped entry only what is looked at is
read, which for a tile of a large image is a small part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.node_cache import private_folder

_FOLDER = "decoded"
#: Share of a disk that stays free, whatever the limit.
_KEPT_FREE = 0.05


@dataclass(frozen=True)
class DecodedCache:
    """Where decoded images are kept.

    Attributes:
        cache: ``data.cache``.
        limit: bytes of all entries together.
    """

    cache: str | None
    limit: int

    def get(self, key: str) -> NDArray[np.uint8] | None:
        """The (h, w, 3) image of a key, mapped and not writable; None where there is none."""
        try:
            found = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        sound = found.dtype == np.uint8 and found.ndim == 3
        return found if sound else None

    def put(self, key: str, image: NDArray[np.uint8]) -> None:
        """Keep an image, if there is room; what the disk says against it is no error."""
        with contextlib.suppress(OSError):
            path = self._path(key)
            used = _used(self)
            if used[0] + image.nbytes > self.limit:
                return
            disk = os.statvfs(path.parent)
            if disk.f_bavail * disk.f_frsize - image.nbytes < _KEPT_FREE * (
                disk.f_blocks * disk.f_frsize
            ):
                return
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.save(file, image, allow_pickle=False)
                Path(name).replace(path)
                used[0] += image.nbytes
            except OSError:
                Path(name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return _folder(self) / f"{key}.npy"


def key_of(*parts: object) -> str:
    """The name of an entry that follows from ``parts``."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogateescape")).hexdigest()[:40]


@lru_cache(maxsize=4)
def _folder(cache: DecodedCache) -> Path:
    folder = private_folder(cache.cache) / _FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@lru_cache(maxsize=4)
def _used(cache: DecodedCache) -> list[int]:
    """Bytes that entries take, as this process knows: others that write meanwhile add to it."""
    used = 0
    with os.scandir(_folder(cache)) as entries:
        for entry in entries:
            # Others give their files their names meanwhile.
            with contextlib.suppress(FileNotFoundError):
                used += entry.stat().st_size if entry.is_file() else 0
    return [used]
