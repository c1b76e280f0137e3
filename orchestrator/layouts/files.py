"""Looking at files without reading them whole: enough to tell one layout from another.

What is hidden - names that begin with a dot, such as ``.ipynb_checkpoints`` and ``._a.jpg`` - is no
part of a data set, nor is ``__MACOSX``, which a Mac adds to archives.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath

from orchestrator.errors import SecurityError

#: Suffixes of images, in small letters, of the kinds that ``orchestrator.data.decode`` reads.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo", ".png", ".apng", ".webp"),
    *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".avifs"),
)

_HEAD_BYTES = 1 << 20
_MARK = re.compile(r"(.*\S)\s+(?:-1|0|1)")
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


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of a data set."""
    return name.startswith(".") or name == "__MACOSX"


def _leads_through_hidden(root: Path, path: Path) -> bool:
    return any(is_hidden(part) for part in path.relative_to(root).parts)


def names_in(folder: Path) -> list[str]:
    """Names of what is not hidden in a folder; none where there is no such folder."""
    try:
        return [path.name for path in folder.iterdir() if not is_hidden(path.name)]
    except (OSError, ValueError):
        return []


def visible(folder: Path, pattern: str) -> list[Path]:
    """What the pattern fits in a folder and is not hidden, in the order of names."""
    return sorted(path for path in folder.glob(pattern) if not _leads_through_hidden(folder, path))


def files_below(root: Path, *, follow_links: bool) -> Iterator[str]:
    """The files in a folder and in all folders below it, relative to it, in no order.

    No folder is read twice: a linked one that lies in ``root`` is read by its own name, unless that
    is hidden, and one elsewhere by the first of its links. So links in a circle end, too.

    Args:
        root: to begin with.
        follow_links: a linked folder may lie elsewhere.

    Raises:
        SecurityError: a linked folder lies elsewhere and may not.
    """
    top = Path(os.path.realpath(root))
    linked: set[Path] = set()

    def is_read(folder: Path) -> bool:
        real = Path(os.path.realpath(folder))
        if real == folder:
            return True
        inside = real.is_relative_to(top)
        if not (inside or follow_links):
            raise link_out(folder.relative_to(top.parent).as_posix(), real, top)
        if real in linked or (inside and not _leads_through_hidden(top, real)):
            return False
        linked.add(real)
        return True

    for folder, folders, names in os.walk(top, followlinks=True):
        # In order, so that it is the same link by which a folder is read, wherever it is looked at.
        folders[:] = [
            name for name in sorted(folders) if not is_hidden(name) and is_read(Path(folder, name))
        ]
        below = PurePath(folder).relative_to(top)
        yield from ((below / name).as_posix() for name in names if not is_hidden(name))


def link_out(name: str, real: Path, root: Path) -> SecurityError:
    """The error about a link that leads out of a folder."""
    return SecurityError(
        f"{name}: is a link to {real}, out of {root}\n"
        "allow links that you trust with data.follow_links=true"
    )


def has(folder: Path, suffix: str, *, below: bool = False) -> bool:
    """Whether a folder holds a file whose name ends so, itself or with ``below`` anywhere in it."""
    # Links are followed, since only names are looked at; the reader says which may not be.
    names = files_below(folder, follow_links=True) if below else names_in(folder)
    return any(name.endswith(suffix) and is_file(folder / name) for name in names)


def first_lines(path: Path, count: int = 50) -> list[str]:
    """The first lines of a text that are not blank; none of a name that no file can have."""
    try:
        with path.open("rb") as file:
            text = file.read(_HEAD_BYTES).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError):
        return []
    lines = [line.strip() for line in text.splitlines()[:count]]
    return [line for line in lines if line]


def marks_one_class(line: str, annotations: Path) -> bool:
    """Whether a line of a VOC image set says of an image, in -1, 0 or 1, whether it has a class.

    ``frame 1`` may as well be the name of an image. Which of the two it is, the XML files tell.

    Args:
        line: without blanks around it.
        annotations: folder of the XML files.
    """
    mark = _MARK.fullmatch(line)
    return (
        mark is not None
        and not is_file(annotations / f"{line}.xml")
        and is_file(annotations / f"{mark[1]}.xml")
    )


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
