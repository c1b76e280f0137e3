"""Sizes of the frames inside an AVIF file, read without decoding.

The header of the container says how large a picture is; the AV1 sequence header inside says how
much memory its decoder takes. Nothing makes the two agree, so two kilobytes can cost gigabytes.

Sources: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items), and the AV1 bitstream specification,
sections 5.3 to 5.5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAX_ITEMS = 4096
_SEQUENCE_HEADER = 1
#: Tiles of a grid may reach over the picture they make.
_SLACK = 512


def avif_problem(data: bytes, size: tuple[int, int]) -> str | None:
    """Why the frames of an AVIF file do not belong to a picture of ``size``; None where they do.

    Args:
        data: of the file.
        size: (height, width) that its header claims.
    """
    try:
        frames = [frame for part in _coded(data) for frame in _frames(part)]
    except (struct.error, IndexError, EOFError):
        frames = []
    if not frames:
        return "AVIF whose frame cannot be found; the file is truncated or damaged"
    height, width = size
    for high, wide in frames:
        if high > 2 * height + _SLACK or wide > 2 * width + _SLACK:
            return f"header says {width}x{height} pixels, but a frame inside has {wide}x{high}"
    # Colour, opacity, a depth map and a preview; a grid has many frames, which share the picture.
    if sum(high * wide for high, wide in frames) > 4 * height * width + 8 * _SLACK**2:
        return f"header says {width}x{height} pixels, but its {len(frames)} frames have far more"
    return None


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, first and last byte of each box between two places."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        first = start + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, first)
            first += 8
        stop = end if size == 0 else start + size
        if stop < first or stop > end:
            return
        yield kind, first, stop
        start = stop


def _inside(data: bytes, start: int, end: int, *way: bytes) -> Iterator[tuple[int, int]]:
    """Boxes of these kinds inside each other."""
    for kind, first, stop in _boxes(data, start, end):
        if kind == way[0]:
            if len(way) == 1:
                yield first, stop
            else:
                yield from _inside(data, first, stop, *way[1:])


def _coded(data: bytes) -> Iterator[bytes]:
    """The AV1 data of every item, and of the first frame of every track."""
    for first, stop in _inside(data, 0, len(data), b"meta"):
        yield from _items(data, first + 4, stop)
    for first, stop in _inside(data, 0, len(data), b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        tables = {kind: at for kind, at, _ in _boxes(data, first, stop)}
        if b"stsz" not in tables:
            continue
        fixed, _, size = struct.unpack_from(">III", data, tables[b"stsz"] + 4)
        for kind, form in ((b"stco", ">I"), (b"co64", ">Q")):
            if kind in tables:
                (offset,) = struct.unpack_from(form, data, tables[kind] + 8)
                yield data[offset : offset + (fixed or size)]


def _items(data: bytes, start: int, end: int) -> Iterator[bytes]:
    """The data of every AV1 item of a ``meta`` box."""
    kinds = dict(_item_kinds(data, start, end))
    idat = next(_inside(data, start, end, b"idat"), (0, 0))[0]
    for first, _ in _inside(data, start, end, b"iloc"):
        for number, method, extents in _locations(_Fields(data, first)):
            if kinds.get(number) == b"av01":
                base = idat if method == 1 else 0
                parts = [data[base + at : base + at + size] for at, size in extents]
                yield b"".join(parts)


def _item_kinds(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    for first, stop in _inside(data, start, end, b"iinf"):
        skip = 6 if data[first] == 0 else 8
        for at, _ in _inside(data, first + skip, stop, b"infe"):
            wide = data[at] >= 3
            (number,) = struct.unpack_from(">I" if wide else ">H", data, at + 4)
            place = at + (10 if wide else 8)
            yield number, data[place : place + 4]


class _Fields:
    """Whole numbers of any width in bytes, one after the other."""

    def __init__(self, data: bytes, place: int) -> None:
        self._data, self._place = data, place

    def take(self, width: int) -> int:
        """The next one."""
        part = self._data[self._place : self._place + width]
        if len(part) != width:
            raise EOFError
        self._place += width
        return int.from_bytes(part, "big")


def _locations(fields: _Fields) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
    """Number, construction method and extents of each item (ISO/IEC 14496-12, 8.11.3)."""
    version = fields.take(1)
    fields.take(3)
    widths = fields.take(2)
    offset, length, base, index = (widths >> shift & 15 for shift in (12, 8, 4, 0))
    for _ in range(min(fields.take(4 if version == 2 else 2), _MAX_ITEMS)):
        number = fields.take(4 if version == 2 else 2)
        method = fields.take(2) & 15 if version else 0
        fields.take(2)
        start = fields.take(base)
        extents = []
        for _ in range(min(fields.take(2), _MAX_ITEMS)):
            if version and index:
                fields.take(index)
            at = start + fields.take(offset)
            extents.append((at, fields.take(length) or 1 << 62))
        yield number, method, extents


def _frames(part: bytes) -> Iterator[tuple[int, int]]:
    """(height, width) in every sequence header of AV1 data (section 5.3)."""
    place = 0
    while place < len(part):
        head = part[place]
        kind, place = head >> 3 & 15, place + (2 if head & 4 else 1)
        size = len(part) - place
        if head & 2:
            size, place = _leb128(part, place)
        if kind == _SEQUENCE_HEADER:
            yield _sequence_size(_Bits(part[place : place + size]))
        place += size


def _leb128(part: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        byte = part[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            break
    return value, place


class _Bits:
    """Numbers of any width in bits, one after the other."""

    def __init__(self, data: bytes) -> None:
        # The fields up to the size take far less.
        self._value, self._left = int.from_bytes(data[:512], "big"), 8 * len(data[:512])

    def take(self, width: int) -> int:
        """The next one."""
        self._left -= width
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & ((1 << width) - 1)


def _sequence_size(bits: _Bits) -> tuple[int, int]:
    """(height, width) of the largest frame (section 5.5.1)."""
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        _skip_operating_points(bits)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(wide) + 1, bits.take(high) + 1
    return height, width


def _skip_operating_points(bits: _Bits) -> None:
    delay = 0
    if bits.take(1):
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while not bits.take(1):
                zeros += 1
            bits.take(min(zeros, 32))
        if bits.take(1):
            delay = bits.take(5) + 1
            bits.take(42)
    shown = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay and bits.take(1):
            bits.take(2 * delay + 1)
        if shown and bits.take(1):
            bits.take(4)
