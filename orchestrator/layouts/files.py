"""Looking at files without reading them whole: enough to tell one layout from another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

#: Suffixes of images, in small letters, of the kinds that ``orchestrator.data.decode`` reads.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp"),
    *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
)

_HEAD_BYTES = 1 << 20
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; there is none of a name that no file can have."""
    return _holds(path.is_dir)


def is_file(path: Path) -> bool:
    """Like :func:`is_folder`, for a file."""
    return _holds(path.is_file)


def exists(path: Path) -> bool:
    """Like :func:`is_folder`, for anything."""
    return _holds(path.exists)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):
        # pathlib says no to what is missing, but fails for a name too long or a closed folder.
        return False


def has(folder: Path, pattern: str) -> bool:
    """Whether a folder holds a file that the pattern fits."""
    return is_folder(folder) and any(is_file(path) for path in folder.glob(pattern))


def first_lines(path: Path, count: int = 50) -> list[str]:
    """The first lines of a text that are not blank; none of a name that no file can have."""
    try:
        with path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError):
        return []
    lines = [line.strip() for line in text.splitlines()[:count]]
    return [line for line in lines if line]


def first_image(annotations: Path) -> str | None:
    """A ``file_name`` of a COCO file, found near its beginning or end; None where there is none."""
    try:
        with annotations.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            end = file.seek(0, 2)
            file.seek(max(0, end - _HEAD_BYTES))
            tail = file.read(_HEAD_BYTES)
    except (OSError, ValueError):
        return None
    for part in (head, tail):
        if match := _FILE_NAME.search(part):
            try:
                name = json.loads(match[1])
            except ValueError:
                return None
            return str(name)
    return None
