"""The images of a data set, wherever they lie: files of a folder, or inside shards."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import (
    BadImageError,
    Header,
    decode_image,
    file_bytes,
    header_in,
    read_header,
    read_image,
)
from orchestrator.data.files import reason
from orchestrator.data.sharded_images import DamagedError


def image_name(data: Dataset, index: int) -> str:
    """Where an image is, for messages."""
    if data.shards is None:
        return str(data.path(index))
    return f"{data.files[index]} in {data.shards.place(index)}"


def image_bytes(data: Dataset, index: int) -> bytes:
    """An image as it is stored.

    Raises:
        BadImageError: the file cannot be read, or the bytes in the shard are damaged.
        DataError: the whole shard is missing or another one.
        StorageError: the shard cannot be read.
    """
    if data.shards is not None:
        try:
            return data.shards.read(index)
        except DamagedError as error:
            raise BadImageError(f"{image_name(data, index)}: damaged ({error})") from error
    path = data.path(index)
    try:
        return file_bytes(path)
    except (OSError, ValueError) as error:
        raise BadImageError(f"{path}: cannot be read ({reason(error)})") from error
    except BadImageError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__


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
        StorageError: its shard cannot be read.
    """
    size = (int(data.heights[index]), int(data.widths[index])) if declared else None
    if data.shards is None:
        return read_image(data.path(index), size=size, decoding=data.decoding)
    content = image_bytes(data, index)
    try:
        return decode_image(content, size=size, decoding=data.decoding)
    except BadImageError as error:
        raise BadImageError(f"{image_name(data, index)}: {error}") from None


def image_header(data: Dataset, index: int) -> Header:
    """The image's header.

    Raises:
        BadImageError: it has none that can be understood.
    """
    if data.shards is None:
        return read_header(data.path(index))
    content = image_bytes(data, index)
    try:
        return header_in(content)
    except BadImageError as error:
        raise BadImageError(f"{image_name(data, index)}: {error}") from None


def image_exists(data: Dataset, index: int) -> bool:
    """Whether there is anything at all where the image should be."""
    if data.shards is None:
        return data.path(index).exists()
    return bool(data.shards.length[index])
