"""The one way from an image file to pixels: uint8 RGB of the size the annotations speak of.

Everything is turned to three 8-bit channels: grey is repeated, alpha is dropped without blending,
16 bits are scaled to 8, CMYK is converted, and of an animation the first frame is taken. EXIF
orientation is ignored: COCO annotates stored pixels, and that is the space boxes live in. The
header is looked at before anything is decoded, so that a small file that claims a huge image, or
one whose size is not the annotated one, costs nothing.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.files import open_regular, reason
from orchestrator.errors import DataError

#: Pillow's plug-ins that may look at a file. EPS and its like, which start other programs, may not.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
#: Largest image that is decoded: what Pillow calls a decompression bomb, 268 MB as RGB.
MAX_PIXELS = 89_478_485
#: Largest file that is read: a little more than that many pixels without compression.
MAX_BYTES = 2**28 + 2**20
#: A file larger than this is read only once its header has been found to be an image's.
_LOOK_FIRST_BYTES = 2**24

_DECODE_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_START_OF_SCAN = b"\xff\xda"
_END_OF_IMAGE = b"\xff\xd9"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes of a chunk beside its content: length, name and checksum.
_PNG_CHUNK = 12

# Images are decoded by several processes at once, and threads below each would only fight them.
cv2.setNumThreads(0)


class BadImageError(DataError):
    """An image file that cannot be used; the message is one line and names the file."""


class TooManyPixelsError(BadImageError):
    """An image that is sound as far as its header tells, but larger than is decoded."""


def read_image(
    path: Path, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: of the file.
        size: (height, width) the annotations declare; None takes any size.
        max_pixels: largest height * width that is decoded.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadImageError: the file is missing, empty, not an image of a known format, truncated, too
            large, or of another size than declared. An image whose file is whole but whose bytes
            were changed in the middle cannot be told from a good one.
    """
    try:
        return decode_image(file_bytes(path), size=size, max_pixels=max_pixels)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    except BadImageError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__


def file_bytes(path: Path) -> bytes:
    """All bytes of a file that is not too large to be an image that is decoded.

    Raises:
        BadImageError: too large, or large and no image; the message does not name the file.
        OSError: it cannot be read, or is no file.
        ValueError: the path holds a null byte.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise BadImageError(f"{size} bytes, allowed are {MAX_BYTES}")
        if size > _LOOK_FIRST_BYTES:
            _open(file, file.read(16))
            file.seek(0)
        return file.read()


def _unreadable(path: Path, error: OSError | ValueError) -> BadImageError:
    return BadImageError(f"{path}: cannot be read ({reason(error)})")


def decode_image(
    data: bytes, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """:func:`read_image` for the bytes of a file; messages do not name one."""
    kind, height, width = require_sound(data, size=size, max_pixels=max_pixels)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS)
    except cv2.error as error:
        raise BadImageError(f"{kind} cannot be decoded ({error.err})") from error
    if image is None:
        raise BadImageError(f"{kind} cannot be decoded; the file is truncated or damaged")
    if image.shape != (height, width, 3):
        raise BadImageError(
            f"header says {width}x{height}, decoded {image.shape[1]}x{image.shape[0]}"
        )
    return image.astype(np.uint8, copy=False)


def require_sound(
    data: bytes, *, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> tuple[str, int, int]:
    """Format, height and width of an image file, after all checks that need no decoding.

    Raises:
        BadImageError: as :func:`read_image`, but for what only decoding brings to light.
    """
    kind, height, width = _open(io.BytesIO(data), data[:16])
    if height * width > max_pixels:
        raise TooManyPixelsError(f"{width}x{height} pixels, allowed are {max_pixels}")
    if size is not None and (height, width) != size:
        swapped = " (width and height swapped?)" if (width, height) == size else ""
        raise BadImageError(
            f"is {width}x{height} pixels, but annotated as {size[1]}x{size[0]}{swapped}"
        )
    if kind == "JPEG" and not _jpeg_is_whole(data):
        raise BadImageError("truncated JPEG: no end-of-image marker")
    if kind == "PNG" and not _png_is_whole(data):
        raise BadImageError("truncated PNG: a chunk reaches over its end, or the last is missing")
    return kind, height, width


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of an image file, of which only the header is read.

    Raises:
        BadImageError: the file is missing, empty or not an image of a known format.
    """
    try:
        with open_regular(path) as file:
            return _open(file, file.read(16))[1:]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    except BadImageError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__


def size_in(data: bytes) -> tuple[int, int]:
    """:func:`read_size` for the bytes of a file; messages do not name one."""
    return _open(io.BytesIO(data), data[:16])[1:]


def _open(file: BinaryIO, start: bytes) -> tuple[str, int, int]:
    """Format, height and width from the header alone (20 microseconds); ``start`` begins it."""
    if not start:
        raise BadImageError("empty file")
    file.seek(0)
    try:
        with Image.open(file, formats=FORMATS) as image:
            return str(image.format or ""), image.height, image.width
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"more than {2 * MAX_PIXELS} pixels") from error
    # A parser of foreign bytes may fail in any way; the verdict is the same.
    except Exception as error:
        begins = repr(start.decode("latin-1"))
        raise BadImageError(f"not an image of a known format; begins with {begins}") from error


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end-of-image marker follows the last scan.

    Entropy-coded data escape every 0xFF byte (ITU-T T.81, B.1.1.5), so neither marker can occur in
    them by chance. Some decoders fill the missing rows of a truncated file with grey and report
    success; files padded with zeros after a broken download even satisfy the stricter ones.
    """
    return data.endswith(_END_OF_IMAGE) or data.rfind(_END_OF_IMAGE) > data.rfind(_START_OF_SCAN)


def _png_is_whole(data: bytes) -> bool:
    """Whether all chunks up to the last, IEND, lie in the file (ISO/IEC 15948, 5.3).

    OpenCV makes room for as many bytes as a chunk claims before it looks for them: 4 GB and ten
    seconds for a file of a hundred bytes.
    """
    position = len(_PNG_SIGNATURE)
    while position + _PNG_CHUNK <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        if position + _PNG_CHUNK + length > len(data):
            return False
        if data[position + 4 : position + 8] == b"IEND":
            return True
        position += _PNG_CHUNK + length
    return False
