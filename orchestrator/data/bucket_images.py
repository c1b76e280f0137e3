"""Image files in a bucket that no shards were made of, fetched one by one.

Each image is a request, so a batch fetches its images side by side. Beyond about a million images,
whose names take minutes to list, shards are the better way.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.decode import BadImageError
from orchestrator.storage.address import Place, open_store, unreachable
from orchestrator.storage.folders import storage_errors

#: Requests at a time of one process. They wait for the store, not for a processor.
_FETCHES = 16

#: What was fetched ahead in this process, by address and name: the images of the last batch.
_HELD: dict[tuple[str, str], bytes] = {}


@dataclass(frozen=True, eq=False)
class BucketImages:
    """Where the images of a data set are.

    Attributes:
        location: ``s3://bucket/prefix``, with the options of the store.
        sizes: (n,) int64 bytes of each image when the prefix was listed; 0 where there was none.
        times: (n,) int64 nanoseconds of its last change then.
    """

    location: str
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]

    def place(self, name: str) -> str:
        """Address of an image, for messages."""
        return f"{Place.of(self.location).plain.rstrip('/')}/{name}"

    def read(self, name: str, index: int, *, most_bytes: int) -> bytes:
        """An image as it is stored.

        Args:
            name: below the prefix.
            index: of the image among those of the listing.
            most_bytes: that an image may have.

        Raises:
            BadImageError: it is not there, or too large; the message does not name it.
            StorageError: the store does not answer.
        """
        size = int(self.sizes[index])
        if size > most_bytes:
            raise BadImageError(f"{size} bytes, allowed are {most_bytes}")
        held = _HELD.get((self.location, name))
        content = self._request(name) if held is None and size else held
        if content is None:
            raise BadImageError("there is no such object")
        return content

    def fetch(self, names: Sequence[str]) -> None:
        """Have these images at hand, in place of those before.

        Raises:
            StorageError: the store does not answer.
        """
        _HELD.clear()
        with ThreadPoolExecutor(_FETCHES, thread_name_prefix="images") as pool:
            for name, content in zip(names, pool.map(self._request, names), strict=True):
                if content is not None:
                    _HELD[self.location, name] = content

    def _request(self, name: str) -> bytes | None:
        files, base = open_store(self.location)
        try:
            # A store that fails is not an image that is bad: that would put another in its place.
            with storage_errors(self.place(name)):
                with files.open_input_file(f"{base.rstrip('/')}/{name}") as file:
                    content: bytes = file.read()
                return content
        except FileNotFoundError:
            return None


def list_images(location: str) -> dict[str, tuple[int, int]]:
    """Bytes and time of change of each object below a prefix, by its name there.

    Raises:
        ConfigError: the address is none that can be used.
        StorageError: the store does not answer.
    """
    # Here, so that a machine without buckets needs no pyarrow.
    import pyarrow.fs

    files, base = open_store(location)
    base = base.rstrip("/")
    selector = pyarrow.fs.FileSelector(base, recursive=True, allow_not_found=True)
    try:
        infos = files.get_file_info(selector)
    except OSError as error:
        raise unreachable(Place.of(location).plain, error) from error
    return {
        info.path[len(base) + 1 :]: (info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == pyarrow.fs.FileType.File
    }


def bucket_images(
    location: str, names: Sequence[str], there: dict[str, tuple[int, int]]
) -> BucketImages:
    """The images of a data set among the objects that are there."""
    table = np.array([there.get(name, (0, 0)) for name in names], np.int64).reshape(-1, 2)
    return BucketImages(location, sizes=table[:, 0].copy(), times=table[:, 1].copy())
