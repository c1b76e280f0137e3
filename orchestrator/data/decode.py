"""The one way from an image file to pixels: uint8 RGB of the size the annotations speak of.

Everything is turned to three 8-bit channels: grey is repeated, alpha is dropped without blending,
16 bits are scaled to 8, CMYK is converted, and of an animation the first frame is taken. Which grey
levels of 16 become black and white, and whether a picture is turned as its orientation tag says, is
a :class:`Decoding`; the rule is the same for every format of image. The header is looked at before
anything is decoded, so that a small file that claims a huge image, or one whose size is not the
annotated one, costs nothing.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.data.avif_frames import avif_problem
from orchestrator.data.files import patiently, reason, storage_failed, unread
from orchestrator.data.image_streams import jpeg_problem, png_is_whole
from orchestrator.data.orientation import (
    UPRIGHT,
    Orientation,
    plain_tiff,
    swaps_sides,
    tag_of,
    turned,
)
from orchestrator.errors import DataError
from orchestrator.storage.plain_files import open_regular

#: Pillow's plug-ins that may look at a file. EPS and its like, which start other programs, may not.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
#: Largest image that is decoded: what Pillow calls a decompression bomb, 268 MB as RGB.
MAX_PIXELS = 89_478_485
#: Largest image whose header is believed: more than OpenCV decodes.
_MOST_PIXELS = 2**30
#: Largest file that is read: a little more than that many pixels without compression.
MAX_BYTES = 2**28 + 2**20
#: A file larger than this is read only once its header has been found to be an image's.
_LOOK_FIRST_BYTES = 2**24

#: Kinds of file that OpenCV 5.0.0 does not always decode as RGB when asked to: of an AVIF with
#: alpha it gives BGR, of a TIFF of three 16-bit channels what was in memory before.
_ONLY_BGR = ("AVIF", "TIFF")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 262, 277, 284, 339
_WHITE_IS_ZERO, _APART, _SIGNED = 0, 2, 2
#: First bytes of what is taken for an image by mistake, and what to do.
_NO_IMAGES = (
    (b"version https://", 0, "a pointer of Git LFS; `git lfs pull` fetches the image"),
    (b"ftyphei", 4, "HEIC, which is not read; save it as JPEG"),
    (b"ftypmif1", 4, "HEIF, which is not read; save it as JPEG"),
    (b"II*\0", 0, "a TIFF of a form that is not read; save it with 8 or 16 bits a value"),
    (b"MM\0*", 0, "a TIFF of a form that is not read; save it with 8 or 16 bits a value"),
)

#: Percentiles of an image's values that become black and white with ``levels: used``.
_USED = (0.1, 99.9)

# Images are decoded by several processes at once, and threads below each would only fight them.
cv2.setNumThreads(0)


class BadImageError(DataError):
    """An image file that cannot be used; the message is one line and names the file."""


class TooManyPixelsError(BadImageError):
    """An image that is sound as far as its header tells, but larger than is decoded."""


@dataclass(frozen=True)
class Decoding:
    """How image files become pixels.

    Attributes:
        orientation: pixels as they are ``stored``, or turned by their tag as they are
            ``displayed``.
        levels: of images of more than 8 bits, what becomes black and white: ``full``, the range of
            16 bits; ``used``, for each image the range from its 0.1 % to its 99.9 % percentile; or
            two values.
        max_pixels: largest height * width that is decoded, where nothing else is said.
    """

    orientation: Orientation = "stored"
    levels: Literal["full", "used"] | tuple[float, float] = "full"
    max_pixels: int = MAX_PIXELS


#: As COCO has it.
STORED = Decoding()


@dataclass(frozen=True)
class Header:
    """What an image file says of itself.

    Attributes:
        kind: of file, as Pillow calls it.
        height, width: of the pixels as stored.
        tag: of its orientation, 1 to 8.
        deep: whether its values have more than 8 bits.
        signed: whether its values have a sign.
        white: the value of white, where it is below 255 (PPM).
        white_is_zero: whether its values count from white down to black (TIFF).
        planes: whether each colour lies in a plane of its own (TIFF).
    """

    kind: str
    height: int
    width: int
    tag: int = UPRIGHT
    deep: bool = False
    signed: bool = False
    white: int | None = None
    white_is_zero: bool = False
    planes: bool = False

    def size(self, orientation: Orientation) -> tuple[int, int]:
        """(height, width) as ``stored`` or ``displayed``."""
        if orientation == "displayed" and swaps_sides(self.tag):
            return self.width, self.height
        return self.height, self.width


def read_image(
    path: Path,
    *,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    decoding: Decoding = STORED,
) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        path: of the file.
        size: (height, width) the annotations declare; None takes any size.
        max_pixels: largest height * width that is decoded; None for that of ``decoding``.
        decoding: grey levels and orientation.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        BadImageError: the file is missing, empty, not an image of a known format, truncated, too
            large, or of another size than declared. An image whose file is whole but whose bytes
            were changed in the middle cannot be told from a good one.
        StorageError: what it lies on has failed.
    """
    with naming_image(path):
        data = file_bytes(path, max_pixels=max_pixels or decoding.max_pixels)
        return decode_image(data, size=size, max_pixels=max_pixels, decoding=decoding)


def file_bytes(path: Path, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """All bytes of a file that is not too large to be an image of so many pixels.

    Raises:
        BadImageError: too large, or large and no image; the message does not name the file.
        OSError: it cannot be read, or is no file.
        ValueError: the path holds a null byte.
    """
    return patiently(partial(_file_bytes, path, max_pixels))


def _file_bytes(path: Path, max_pixels: int) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        allowed = most_bytes(max_pixels)
        if size > allowed:
            raise BadImageError(f"{size} bytes, allowed are {allowed}")
        if size > _LOOK_FIRST_BYTES:
            _open(file, file.read(16))
            file.seek(0)
        return file.read()


def most_bytes(max_pixels: int) -> int:
    """Bytes that a file may have to be an image of so many pixels."""
    return max(MAX_BYTES, 3 * max_pixels + 2**20)


@contextmanager
def naming_image(place: Path | str) -> Iterator[None]:
    """Name the image in whatever goes wrong with it.

    Raises:
        BadImageError: the image is to blame.
        StorageError: what it lies on is, or this machine: nothing is known of the image then, and
            another one in its place would change what is learnt.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if storage_failed(error):
            raise unread(place, error) from error
        raise BadImageError(f"{place}: cannot be read ({reason(error)})") from error
    except BadImageError as error:
        raise type(error)(f"{place}: {error}") from error.__cause__


def decode_image(
    data: bytes,
    *,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    decoding: Decoding = STORED,
) -> NDArray[np.uint8]:
    """:func:`read_image` for the bytes of a file; messages do not name one."""
    header = require_sound(data, size=size, max_pixels=max_pixels, decoding=decoding)
    image = _pixels(data, header, decoding)
    return image if decoding.orientation == "stored" else turned(image, header.tag)


def _pixels(data: bytes, header: Header, decoding: Decoding) -> NDArray[np.uint8]:
    """Pixels as stored."""
    # OpenCV turns a TIFF even when it is told not to.
    content = plain_tiff(data) if header.kind == "TIFF" else data
    if header.signed:
        _refuse_negative(_imdecode(content, header, cv2.IMREAD_ANYDEPTH))
    own_levels = header.deep and decoding.levels != "full"
    image = _values(content, header) if own_levels else _imdecode(content, header)
    if header.white is not None:
        image = _stretched(image, 0, header.white)
    if image.shape != (header.height, header.width, 3):
        raise BadImageError(
            f"header says {header.width}x{header.height}, decoded {image.shape[1]}x{image.shape[0]}"
        )
    if image.dtype != np.uint8 and decoding.levels != "full":
        low, high = used_levels(image) if decoding.levels == "used" else decoding.levels
        return _stretched(image, low, high)
    return image.astype(np.uint8, copy=False)


def _refuse_negative(values: NDArray[Any]) -> None:
    lowest = values.min()
    if lowest < 0:
        raise BadImageError(
            f"has values below 0, down to {lowest}, which would count as white; save it with "
            "values without sign"
        )


def _values(content: bytes, header: Header) -> NDArray[Any]:
    """RGB values as they are, whatever their bits; white is the highest."""
    image = _imdecode(content, header, cv2.IMREAD_ANYDEPTH)
    # OpenCV turns them itself where it makes 8 bits of them.
    inverted = header.white_is_zero and image.dtype != np.uint8
    return np.iinfo(image.dtype).max - image if inverted else image


def _imdecode(content: bytes, header: Header, flags: int = 0) -> NDArray[Any]:
    """RGB pixels as OpenCV gives them."""
    bgr = header.kind in _ONLY_BGR
    flags |= cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_COLOR if bgr else cv2.IMREAD_COLOR_RGB)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise BadImageError(f"{header.kind} cannot be decoded ({error.err})") from error
    if image is None:
        raise BadImageError(f"{header.kind} cannot be decoded; the file is truncated or damaged")
    return np.ascontiguousarray(image[..., ::-1]) if bgr else image


def used_levels(values: NDArray[Any]) -> tuple[float, float]:
    """The 0.1 % and the 99.9 % percentile of an image's values."""
    low, high = np.percentile(values, _USED)
    return float(low), float(high)


def deep_values(data: bytes, *, max_pixels: int | None = None) -> NDArray[Any] | None:
    """(h, w, 3) values of an image of more than 8 bits; None of another, or where they lie apart.

    Colours in planes of their own, as some TIFFs have them, are decoded as 8 bits alone.

    Args:
        data: of the file.
        max_pixels: largest height * width that is decoded; None for that of :data:`STORED`.

    Raises:
        BadImageError: it cannot be decoded.
    """
    header = require_sound(data, max_pixels=max_pixels)
    if not header.deep or header.planes:
        return None
    image = _values(data, header)
    if header.signed:
        _refuse_negative(image)
    return None if image.dtype == np.uint8 else image


def _stretched(image: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """``low`` becomes 0 and ``high`` 255; of an image of one value everything becomes 0."""
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.clip(np.rint((image.astype(np.float64) - low) * scale), 0, 255).astype(np.uint8)


def require_sound(
    data: bytes,
    *,
    size: tuple[int, int] | None = None,
    max_pixels: int | None = None,
    decoding: Decoding = STORED,
) -> Header:
    """The header of an image file, after all checks that need no decoding.

    Raises:
        BadImageError: as :func:`read_image`, but for what only decoding brings to light.
    """
    header = header_in(data)
    require_decodable(header, decoding, max_pixels=max_pixels)
    if size is not None and (problem := other_size(header, size, decoding.orientation)):
        raise BadImageError(problem)
    if inside := _inside_problem(data, header):
        raise BadImageError(inside)
    return header


def require_decodable(header: Header, decoding: Decoding, *, max_pixels: int | None = None) -> None:
    """Refuse an image that, by its header, is too large or has values that cannot be had.

    Raises:
        BadImageError: in which way.
    """
    allowed = decoding.max_pixels if max_pixels is None else max_pixels
    if header.height * header.width > allowed:
        raise TooManyPixelsError(
            f"{header.width}x{header.height} pixels, allowed are {allowed}; cut it up before"
        )
    if header.deep and header.planes and decoding.levels != "full":
        raise BadImageError(
            "a TIFF of 16 bits whose colours lie in planes of their own (PlanarConfiguration 2), "
            "of which data.levels can be full alone; save it with PlanarConfiguration 1 for others"
        )


def _inside_problem(data: bytes, header: Header) -> str | None:
    """Why what follows the header is not to be decoded; None where nothing speaks against it."""
    match header.kind:
        case "JPEG":
            return jpeg_problem(data, header.height * header.width)
        case "AVIF":
            return avif_problem(data, (header.height, header.width))
        case "PNG" if not png_is_whole(data):
            return "truncated PNG: a chunk reaches over its end, or the last is missing"
    return None


def other_size(header: Header, size: tuple[int, int], orientation: Orientation) -> str:
    """In which way an image is not of its annotated (height, width); empty where it is."""
    height, width = header.size(orientation)
    if (height, width) == size:
        return ""
    found = f"is {width}x{height} pixels, but annotated as {size[1]}x{size[0]}"
    other: Orientation = "displayed" if orientation == "stored" else "stored"
    if header.size(other) == size:
        return (
            f"{found}, which it is {other}: its orientation tag is {header.tag}; "
            f"data.orientation={other} takes it so"
        )
    return f"{found} (width and height swapped?)" if (width, height) == size else found


def read_header(path: Path) -> Header:
    """The header of an image file, of which nothing else is read.

    Raises:
        BadImageError: the file is missing, empty or not an image of a known format.
        StorageError: what it lies on has failed.
    """
    with naming_image(path):
        return patiently(partial(_header, path))


def _header(path: Path) -> Header:
    with open_regular(path) as file:
        return _open(file, file.read(16))


def header_in(data: bytes) -> Header:
    """:func:`read_header` for the bytes of a file; messages do not name one."""
    return _open(io.BytesIO(data), data[:16], data)


def _open(file: BinaryIO, start: bytes, data: bytes = b"") -> Header:
    """The header of a file (20 microseconds) that begins with ``start``; ``data`` is all of it."""
    if not start:
        raise BadImageError("empty file")
    file.seek(0)
    try:
        with _opened(file) as image:
            kind, tag = str(image.format or ""), tag_of(image, data)
            sides = image.height, image.width
            # Pillow gives the size of a TIFF as it is displayed.
            if sides[0] * sides[1] > _MOST_PIXELS:
                raise Image.DecompressionBombError
            height, width = sides[::-1] if kind == "TIFF" and swaps_sides(tag) else sides
            # A phone's file of several pictures begins with one that is like any other.
            kind = "JPEG" if kind == "MPO" else kind
            return Header(kind, height, width, tag, *_values_of(image))
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"more than {2 * MAX_PIXELS} pixels") from error
    except BadImageError:
        raise
    # A parser of foreign bytes may fail in any way; the verdict is the same.
    except Exception as error:
        for begins, at, what in _NO_IMAGES:
            if start[at : at + len(begins)] == begins:
                raise BadImageError(f"not an image of a known format: {what}") from error
        shown = repr(start.decode("latin-1"))
        raise BadImageError(f"not an image of a known format; begins with {shown}") from error


def _opened(file: BinaryIO) -> Image.Image:
    """The image of a file, whose header alone has been read, whatever size it claims.

    Pillow's own limit is on what it opens, and would keep a larger one from being allowed.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        file.seek(0)
        start = file.read(16)
        for name in FORMATS:
            make, accepts = Image.OPEN[name]
            if accepts is None or accepts(start) is not True:
                continue
            file.seek(0)
            try:
                return make(file, "")
            except (SyntaxError, IndexError, TypeError, ValueError):
                continue
        raise


def _values_of(image: Image.Image) -> tuple[bool, bool, int | None, bool, bool]:
    """What an opened file says of its values: the last five of :class:`Header`.

    Raises:
        BadImageError: they have more than 16 bits.
    """
    tiles = getattr(image, "tile", [])
    args = tiles[0].args if tiles else ""
    if image.format == "TIFF":
        tags = getattr(image, "tag_v2", {})
        bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        if bits > 16:
            raise BadImageError(
                f"a TIFF of values of {bits} bits, allowed are 8 and 16; scale them and save it so"
            )
        signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
        planes = tags.get(_PLANES) == _APART and tags.get(_SAMPLES, 1) > 1
        return bits > 8, signed, None, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, planes
    # Where Pillow has no mode of 16 bits, what it is to unpack tells.
    first = args[0] if isinstance(args, tuple) and args else args
    deep = image.mode.startswith(("I", "F")) or "16" in str(first)
    white = args[1] if image.format == "PPM" and isinstance(args, tuple) and len(args) > 1 else 255
    white = white if isinstance(white, int) and 0 < white < 255 else None
    return deep, False, white, False, False
