"""What of a JPEG or PNG is looked at before it is decoded: whether it is whole, and its scans."""

from __future__ import annotations

import re

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes of a chunk beside its content: length, name and checksum.
_PNG_CHUNK = 12

#: Scans that are decoded. Encoders write about ten; each costs a pass over the whole picture.
MAX_SCANS = 64
#: Pixels times scans that are decoded: 24 passes over the largest picture there may be.
MAX_SCANNED_PIXELS = 24 * 89_478_485

_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
#: A marker in entropy-coded data: no escaped 0xFF, no restart interval and no fill byte.
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
#: Markers without a length behind them, beside those two.
_ALONE = frozenset((0x01, *range(0xD0, 0xD8)))
#: What may follow the data of a scan: tables, another scan, the end, number of lines, a comment.
_AFTER_SCAN = frozenset((0xC4, 0xCC, *range(0xD9, 0xE0), *range(0xE0, 0xF0), 0xFE))


def jpeg_problem(data: bytes, pixels: int) -> str | None:
    """Why the picture of a JPEG is not to be decoded; None where nothing speaks against it.

    Source: ITU-T T.81, annex B. Entropy-coded data escape every 0xFF byte (B.1.1.5), so a marker
    cannot occur in them by chance. What follows the end of the picture - the clip of a phone's
    moving photo, a second picture, a maker's notes - may hold any bytes and is not looked at.
    Some decoders fill the missing rows of a truncated file with grey and report success; files
    padded with zeros after a broken download even satisfy the stricter ones.

    Args:
        data: of the file, which begins with the marker of a JPEG.
        pixels: height * width.
    """
    position, scans = 2, 0
    while True:
        found = _MARKER.search(data, position)
        if found is None:
            return "truncated JPEG: no end-of-image marker"
        kind, position = data[found.start() + 1], found.end()
        if kind == _END_OF_IMAGE:
            return None if scans else "truncated JPEG: it ends before its first scan"
        if kind == _START_OF_IMAGE:
            return "truncated JPEG: another file begins before its end-of-image marker"
        if kind in _ALONE or (scans and kind not in _AFTER_SCAN):
            # Decoders pass over stray bytes, too.
            continue
        position += int.from_bytes(data[position : position + 2], "big")
        if kind == _START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS:
                return (
                    f"more than {scans - 1} scans over {pixels} pixels, which take too long to "
                    "decode; save it anew with another program"
                )


def png_is_whole(data: bytes) -> bool:
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
