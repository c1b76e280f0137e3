"""The images of a data set, wherever they lie: in a folder, in a bucket, or inside shards."""

from __future__ import annotations

import errno
import hashlib
import threading
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data import decode, orientation
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import (
    BadImageError,
    Header,
    decode_image,
    file_bytes,
    header_in,
    most_bytes,
    naming_image,
    read_header,
    read_image,
)
from orchestrator.data.decoded_cache import key_of
from orchestrator.data.files import storage_failed, unread
from orchestrator.data.sharded_images import DamagedError
from orchestrator.errors import StorageError

#: Other images that are looked for where one is missing.
_LOOKED_FOR = 16
#: The last whole image that a tile of was asked for, of each thread.
_LAST = threading.local()


def image_name(data: Dataset, index: int) -> str:
    """Where an image is, for messages."""
    if data.bucket is not None:
        return data.bucket.place(data.files[index])
    if data.shards is None:
        return str(data.path(index))
    return f"{data.files[index]} in {data.shards.place(data.stored_index(index))}"


def image_bytes(data: Dataset, index: int) -> bytes:
    """An image as it is stored.

    Raises:
        BadImageError: the file cannot be read, or the bytes in the shard are damaged.
        DataError: the whole shard is missing or another one.
        StorageError: what it lies on has failed, or does not answer.
    """
    if data.shards is not None:
        try:
            return data.shards.read(data.stored_index(index))
        except DamagedError as error:
            raise BadImageError(f"{image_name(data, index)}: damaged ({error})") from error
    with naming_image(image_name(data, index)):
        if data.bucket is not None:
            at, most = data.stored_index(index), most_bytes(data.decoding.max_pixels)
            return data.bucket.read(data.files[index], at, most_bytes=most)
        return file_bytes(data.path(index), max_pixels=data.decoding.max_pixels)


def image_pixels(data: Dataset, index: int, *, declared: bool = True) -> NDArray[np.uint8]:
    """An image, decoded.

    Args:
        data: that it belongs to.
        index: of the image.
        declared: refuse one that is not of the size the annotations declare.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadImageError: it cannot be used; see :func:`~orchestrator.data.decode.read_image`.
        DataError: its whole shard is missing or another one.
        StorageError: what it lies on has failed.
    """
    if data.tiling is not None:
        return _tile(data, index)
    size = (int(data.heights[index]), int(data.widths[index])) if declared else None
    return _whole(data, index, size)


def _whole(data: Dataset, index: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """A whole image, from what the node keeps of it or decoded."""
    cache = data.decoded
    if cache is None or size is None:
        return _decoded(data, index, size)
    key = _key(data, index, size)
    kept = None if key is None else cache.get(key)
    if kept is not None:
        # An augmentation may write into what it gets.
        return kept if data.tiling is not None else np.array(kept)
    image = _decoded(data, index, size)
    if key is not None:
        cache.put(key, image)
    return image


def _tile(data: Dataset, index: int) -> NDArray[np.uint8]:
    """A tile; of the whole image the last one that was decoded is at hand."""
    assert data.tiling is not None
    height, width = data.tiling.sizes[index].tolist()
    left, top, right, bottom = data.tiling.windows[index].tolist()
    which = (data.root, data.path(index), data.stored_index(index), data.decoding)
    last = getattr(_LAST, "image", None)
    if last is None or last[0] != which:
        last = (which, _whole(data, index, (height, width)))
        _LAST.image = last
    return np.array(last[1][top:bottom, left:right])


def _decoded(data: Dataset, index: int, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    if data.in_folder:
        return read_image(data.path(index), size=size, decoding=data.decoding)
    content = image_bytes(data, index)
    try:
        return decode_image(content, size=size, decoding=data.decoding)
    except BadImageError as error:
        raise BadImageError(f"{image_name(data, index)}: {error}") from None


def _key(data: Dataset, index: int, size: tuple[int, int]) -> str | None:
    """What the pixels of an image follow from; None where its file cannot be looked at."""
    how = (size, data.decoding.orientation, data.decoding.levels, cv2.__version__, _decoder())
    if data.shards is not None:
        at = data.stored_index(index)
        place = (data.shards.location, int(data.shards.crc[at]), int(data.shards.length[at]))
        return key_of(place, data.files[index], how)
    if data.bucket is not None:
        at, name = data.stored_index(index), image_name(data, index)
        return key_of(name, int(data.bucket.sizes[at]), int(data.bucket.times[at]), how)
    path = data.path(index)
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return key_of(str(path), found.st_size, found.st_mtime_ns, found.st_ino, how)


@cache
def _decoder() -> str:
    """Digest of what makes pixels of bytes here: another one may make others."""
    sources = (decode.__file__, orientation.__file__)
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sources)).hexdigest()


def image_header(data: Dataset, index: int) -> Header:
    """The image's header.

    Raises:
        BadImageError: it has none that can be understood.
        StorageError: what it lies on has failed, or does not answer.
    """
    if data.in_folder:
        return read_header(data.path(index))
    content = image_bytes(data, index)
    try:
        return header_in(content)
    except BadImageError as error:
        raise BadImageError(f"{image_name(data, index)}: {error}") from None


def image_exists(data: Dataset, index: int) -> bool:
    """Whether there is anything at all where the image should be.

    Raises:
        StorageError: what it lies on has failed.
    """
    if not data.in_folder:
        return stored_length(data, index) > 0
    path = data.path(index)
    try:
        return path.exists()
    except OSError as error:
        if storage_failed(error):
            raise unread(path, error) from error
        return error.errno != errno.ENAMETOOLONG  # A folder may be closed to us.


def require_still_there(data: Dataset, index: int) -> None:
    """Tell an image that cannot be read from a folder that is lost, for images read before.

    A mount that is lost leaves an empty folder. Taking each image in it for a bad one would give
    other weights, or an AP of images that nobody has looked at.

    Raises:
        StorageError: the image is missing, and so are all the others that are looked for.
    """
    if not data.in_folder or image_exists(data, index):
        return
    path, starts = data.path(index), [first for first, _ in data.parts]
    begin = max((first for first in starts if first <= index), default=0)
    end = min((first for first in starts if first > index), default=len(data))
    drawn = np.unique(np.linspace(begin, end - 1, _LOOKED_FOR).astype(int)).tolist()
    others = [other for other in drawn if data.path(other) != path]
    if others and not any(image_exists(data, other) for other in others):
        raise StorageError(
            f"{path}: is gone, and so are all {len(others)} other images of its data set that "
            "were looked for. Next: see whether their folder is still there, and mounted, then "
            "run the same command again"
        )


def stored_length(data: Dataset, index: int) -> int:
    """Bytes of an image, 0 where there is none."""
    at = data.stored_index(index)
    if data.shards is not None:
        return int(data.shards.length[at])
    if data.bucket is not None:
        return int(data.bucket.sizes[at])
    try:
        return data.path(index).stat().st_size
    except OSError:
        return 0


def fetch_images(data: Dataset, indices: NDArray[np.int64]) -> None:
    """Have on this node what these images are in, side by side rather than in turn.

    Raises:
        DataError: a shard is missing or another one.
        StorageError: a shard cannot be read, or the bucket does not answer.
    """
    if data.in_folder:
        return
    if data.shards is not None:
        tiling = data.tiling
        data.shards.fetch(indices if tiling is None else np.unique(tiling.images[indices]))
    if data.bucket is not None:
        wanted = {
            data.files[index]: None
            for index in indices.tolist()
            if image_exists(data, index) and not _is_kept(data, index)
        }
        data.bucket.fetch(list(wanted))


def _is_kept(data: Dataset, index: int) -> bool:
    """Whether the node keeps the image decoded."""
    if data.decoded is None:
        return False
    whole = data.heights[index], data.widths[index]
    height, width = whole if data.tiling is None else data.tiling.sizes[index]
    key = _key(data, index, (int(height), int(width)))
    return key is not None and data.decoded.get(key) is not None
