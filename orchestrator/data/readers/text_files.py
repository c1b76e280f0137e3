"""Line-based annotation files: decoding, file names, and boxes met one by one."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from orchestrator.data.decode import BadImageError, read_header
from orchestrator.data.files import read_text_bytes, reason
from orchestrator.data.findings import Finding, Problems
from orchestrator.data.orientation import Orientation
from orchestrator.data.readers.build import BoxColumns, ImageColumns
from orchestrator.data.readers.numbers import shown
from orchestrator.errors import DataError

#: Headers that are waited for at a time: on a network drive it is latency that counts.
_THREADS = 16
_LONGEST_LINE = 1 << 20
#: Kind of the finding for images that a reader has to leave out.
UNREADABLE_IMAGE = "unreadable_image"


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Number, from 1, and text of every line that is not blank; ends of either kind are fine.

    Raises:
        DataError: the file cannot be read, is no UTF-8 text, or has a line of over a megabyte.
    """
    try:
        data = read_text_bytes(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    if text.startswith("\ufeff"):
        raise DataError(f"{path}:1: begins with a byte order mark; save it as UTF-8 without one")
    lines = []
    for line, raw in enumerate(text.split("\n"), start=1):
        content = raw.removesuffix("\r")
        for character, name in (("\0", "a null byte"), ("\r", "a carriage return")):
            if character in content:
                raise DataError(f"{path}:{line}: holds {name}; is this a text file?")
        if len(content) > _LONGEST_LINE:
            raise DataError(f"{path}:{line}: has {len(content)} characters; is this a text file?")
        if content.strip():
            lines.append((line, content.strip()))
    return lines


class BoxList:
    """Boxes as a reader meets them, one after the other, kept in flat arrays.

    Attributes:
        lines: line of each box in its file.
    """

    def __init__(self) -> None:
        self.lines = array("q")
        self._image = array("q")
        self._xywh = array("d")
        self._labels = array("q")
        self._crowd = array("b")

    def __len__(self) -> int:
        return len(self.lines)

    def add(
        self,
        image: int,
        xywh: tuple[float, float, float, float],
        label: int,
        crowd: bool,
        line: int,
    ) -> None:
        """Append a box of the image at position ``image``."""
        self._image.append(image)
        self._xywh.extend(xywh)
        self._labels.append(label)
        self._crowd.append(crowd)
        self.lines.append(line)

    def image(self, row: int) -> int:
        """Position of the image of a box."""
        return self._image[row]

    def columns(self) -> BoxColumns:
        """All boxes; the area of each is its width times its height."""
        xywh = np.array(self._xywh, dtype=np.float64).reshape(-1, 4)
        return BoxColumns(
            image=np.array(self._image, dtype=np.int64),
            xywh=xywh,
            labels=np.array(self._labels, dtype=np.int64),
            areas=np.abs(xywh[:, 2] * xywh[:, 3]),
            crowd=np.array(self._crowd, dtype=bool),
        )


def images_of(
    files: Sequence[str], sizes: Sequence[tuple[int, int]], ids: Sequence[int] | None = None
) -> ImageColumns:
    """Images of the given (height, width); ids count from 1 unless given."""
    pixels = np.array(sizes, dtype=np.int32).reshape(-1, 2)
    return ImageColumns(
        files=tuple(files),
        ids=np.array(range(1, len(files) + 1) if ids is None else ids, dtype=np.int64),
        widths=pixels[:, 1].copy(),
        heights=pixels[:, 0].copy(),
    )


def report_duplicates(files: Sequence[str], places: Sequence[str], problems: Problems) -> None:
    """Report every file that was named before."""
    seen: dict[str, int] = {}
    for position, file in enumerate(files):
        # The same file by another spelling would be trained on twice, too.
        first = seen.setdefault(os.path.normpath(file), position)
        if first != position:
            problems.add(places[position], f"{shown(file)} is already the image of {places[first]}")


def header_sizes(
    root: Path, files: Sequence[str], orientation: Orientation = "stored"
) -> tuple[list[tuple[int, int]], list[Finding]]:
    """(height, width) of each file from its header; (0, 0), and a finding, where it has none."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(lambda file: _size(root / file, orientation), files))
    bad = [str(one) for one in found if isinstance(one, BadImageError)]
    sizes = [(0, 0) if isinstance(one, BadImageError) else one for one in found]
    kind, action = UNREADABLE_IMAGE, "left out, the size being unknown"
    return sizes, [Finding.at(kind, action, bad)] if bad else []


def _size(path: Path, orientation: Orientation) -> tuple[int, int] | BadImageError:
    try:
        return read_header(path).size(orientation)
    except BadImageError as error:
        return error


def fields_of(line: str) -> Iterator[str]:
    r"""Fields of a line, split at blanks; one in double quotes may hold blanks, \" and \\.

    Raises:
        ValueError: a quote is not closed, or something follows it at once.
    """
    position, end = 0, len(line)
    while position < end:
        if line[position] in " \t":
            position += 1
            continue
        if line[position] == '"':
            field, position = _quoted(line, position)
        else:
            start = position
            while position < end and line[position] not in " \t":
                position += 1
            field = line[start:position]
        yield field


def _quoted(line: str, start: int) -> tuple[str, int]:
    """The field whose opening quote is at ``start``, and the position behind it."""
    text = []
    position = start + 1
    while position < len(line):
        character = line[position]
        if character == "\\" and line[position + 1 : position + 2] in ('"', "\\"):
            text.append(line[position + 1])
            position += 2
        elif character == '"':
            if line[position + 1 : position + 2] not in ("", " ", "\t"):
                raise ValueError(f"column {position + 2}: a blank must follow the closing quote")
            return "".join(text), position + 1
        else:
            text.append(character)
            position += 1
    raise ValueError(f"column {start + 1}: the quote is not closed")


def quoted(text: str) -> str:
    r"""``text`` as one field that :func:`fields_of` reads back.

    Raises:
        ValueError: a line break or null byte, which a line cannot hold.
    """
    if any(character in text for character in "\n\r\0"):
        raise ValueError(f"{shown(text)} cannot be written to a line of text")
    if text and text.strip() == text and not any(character in text for character in ' \t"\\'):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
