"""Orientation tags: how a picture is to be turned to be shown upright (EXIF 2.32, tag 0x0112).

Boxes belong either to the pixels as they are stored, as COCO's do, or to the picture as it is
displayed, as those of most labelling tools do. Which it is no tag says; ``data.orientation`` does.
"""

from __future__ import annotations

import struct
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Orientation: TypeAlias = Literal["stored", "displayed"]

#: Nothing is to be turned.
UPRIGHT: Final = 1
_TAG: Final = 0x0112
_EXIF_CHUNK: Final = b"eXIf"


def tag_of(image: Image.Image, data: bytes = b"") -> int:
    """The orientation tag of an opened file, 1 to 8; 1 where it has none, or none that counts.

    Args:
        image: opened by Pillow; nothing of it is decoded.
        data: of the file, where a tag may stand behind the pixels (PNG).
    """
    if image.format == "TIFF":
        value = getattr(image, "tag_v2", {}).get(_TAG, UPRIGHT)
    else:
        block = image.info.get("exif") or (_png_exif(data) if image.format == "PNG" else b"")
        value = _tag_in(block) if isinstance(block, bytes) and block else UPRIGHT
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT


def _tag_in(block: bytes) -> object:
    exif = Image.Exif()
    try:
        exif.load(block)
        return exif.get(_TAG, UPRIGHT)
    # A parser of foreign bytes may fail in any way; viewers take such a block for none.
    except Exception:
        return UPRIGHT


def _png_exif(data: bytes) -> bytes:
    """The block of a PNG's chunk; empty for none (PNG third edition, 11.3.4.5)."""
    at = data.find(_EXIF_CHUNK)
    if at < 4:
        return b""
    length = int.from_bytes(data[at - 4 : at], "big")
    return data[at + 4 : at + 4 + length]


def swaps_sides(tag: int) -> bool:
    """Whether width and height change places."""
    return tag >= 5


def turned(image: NDArray[np.uint8], tag: int) -> NDArray[np.uint8]:
    """A (h, w, 3) image as stored, turned to be upright."""
    match tag:
        case 2:
            image = image[:, ::-1]
        case 3:
            image = image[::-1, ::-1]
        case 4:
            image = image[::-1]
        case 5:
            image = image.transpose(1, 0, 2)
        case 6:
            image = image.transpose(1, 0, 2)[:, ::-1]
        case 7:
            image = image.transpose(1, 0, 2)[::-1, ::-1]
        case 8:
            image = image.transpose(1, 0, 2)[::-1]
    return np.ascontiguousarray(image)


def turned_boxes(
    boxes: NDArray[np.float64], size: tuple[int, int], tag: int
) -> NDArray[np.float64]:
    """(n, 4) xyxy boxes of the pixels as stored, in the picture turned to be upright.

    Args:
        boxes: pixels.
        size: (height, width) as stored.
        tag: of the file.
    """
    height, width = size
    left, top, right, bottom = boxes.T
    columns = {
        2: (width - right, top, width - left, bottom),
        3: (width - right, height - bottom, width - left, height - top),
        4: (left, height - bottom, right, height - top),
        5: (top, left, bottom, right),
        6: (height - bottom, left, height - top, right),
        7: (height - bottom, width - right, height - top, width - left),
        8: (top, width - right, bottom, width - left),
    }.get(tag, (left, top, right, bottom))
    return np.stack(columns, axis=1)


#: Values that keep a decoder from changing pixels, by tag: it would turn them, and multiply colours
#: by an alpha that is said to be apart from them (2), but not by one that is in them already (1).
_PLAIN_TIFF: Final = {_TAG: (None, UPRIGHT), 0x0152: (2, 1)}


def plain_tiff(data: bytes) -> bytes:
    """A TIFF whose pixels a decoder gives as they are stored: not turned, not mixed with black.

    Only the first directory is looked at, as only the first picture is decoded (TIFF 6.0, section
    2; BigTIFF where the version is 43).
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return data
    try:
        (version,) = struct.unpack_from(f"{order}H", data, 2)
        big = version == 43
        (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", data, start)
        entry, first = (20, start + 8) if big else (12, start + 2)
        for place in range(first, first + entry * min(count, 4096), entry):
            tag, kind = struct.unpack_from(f"{order}HH", data, place)
            if tag not in _PLAIN_TIFF:
                continue
            changed, plain = _PLAIN_TIFF[tag]
            at, form = place + (12 if big else 8), f"{order}{'I' if kind == 4 else 'H'}"
            if changed is None or struct.unpack_from(form, data, at) == (changed,):
                value = struct.pack(form, plain)
                data = data[:at] + value + data[at + len(value) :]
    except struct.error:
        pass
    return data
