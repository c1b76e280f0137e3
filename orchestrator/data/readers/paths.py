"""File names from annotations: they must stay under the image folder, symbolic links included."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.findings import MAX_PROBLEMS
from orchestrator.data.orientation import Orientation
from orchestrator.data.readers.lookalikes import Lookalikes
from orchestrator.errors import DataError, SecurityError, nearest
from orchestrator.layouts.files import exists, files_below, is_file, is_folder
from orchestrator.layouts.layout import Task


@dataclass(frozen=True)
class ReadRules:
    """What the same annotation files are read by.

    Attributes:
        orientation: in which the sizes of images are taken from their headers.
        follow_links: symbolic links may lead out of the folder, as DVC's and git-annex's do.
        need_images: image files are looked for.
        task: what YOLO's label files were written for, which says how a line becomes a box.
    """

    orientation: Orientation = "stored"
    follow_links: bool = False
    need_images: bool = True
    task: Task = "detect"


#: Last parts of names that no file has.
_NO_FILES = ("", ".", "..")
#: Of who says nothing else.
USUAL = ReadRules()


def require_folder(folder: Path, *, what: str, key: str) -> Path:
    """The absolute real path of an existing folder.

    Args:
        folder: to look for.
        what: what it holds, for the message.
        key: of the experiment that names it; see :func:`split_key`.

    Raises:
        DataError: there is no such folder.
    """
    if not is_folder(folder):
        raise DataError(_missing(folder, what=what, key=key))
    return folder.resolve()


def require_file(file: Path, *, what: str, key: str) -> Path:
    """Like :func:`require_folder`, for a file."""
    if not is_file(file):
        raise DataError(_missing(file, what=what, key=key))
    return file


def split_key(setting: str) -> str:
    """The key ``setting`` of either split, as a message names it."""
    return f"data.train.{setting} (or data.val.{setting})"


def missing(path: Path, *, what: str, key: str) -> str:
    """A line about a path that ``data.key`` names and that is not there, or of another kind."""
    return f"data.{key}: {what} {_not_there(path)}"


def _not_there(path: Path) -> str:
    there = exists(path)
    found = "is not the right kind of file" if there else "does not exist"
    parent = path.parent
    similar = nearest(path.name, _entries(parent))
    guess = f"; did you mean {parent / similar}?" if similar and not there else ""
    return f"{path} {found}{guess}"


def _missing(path: Path, *, what: str, key: str) -> str:
    return (
        f"{what} {_not_there(path)}\n"
        f"correct {key}, or point data.root at the folder that holds the data set: "
        "data.root=FOLDER"
    )


def check_files(root: Path, names: Sequence[str], *, follow_links: bool = False) -> list[int]:
    """Look for the files that annotations name.

    Each folder is listed once and only symbolic links are resolved one by one, so that a hundred
    thousand files take a fraction of a second.

    Args:
        root: absolute real path of the image folder.
        names: paths relative to ``root``.
        follow_links: a symbolic link may lead out of ``root``; a name may not.

    Returns:
        Positions in ``names`` of files that do not exist.

    Raises:
        SecurityError: a name is absolute or leads out of ``root``; the first hundred are listed.
    """
    absolute: list[int] = []
    escapes: dict[int, str] = {}
    missing: list[int] = []
    by_folder: dict[str, list[int]] = defaultdict(list)
    for position, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        if name.startswith("/"):
            absolute.append(position)
        elif "\0" in name or base in _NO_FILES:
            escapes[position] = "is no file name"
        elif follow_links and os.path.normpath(name).startswith("../"):
            escapes[position] = f"leads to {os.path.normpath(root / name)}"
        else:
            by_folder[folder].append(position)
    for folder, positions in by_folder.items():
        real = _resolve(root / folder)
        if real is None:
            missing += positions
            continue
        if not (follow_links or real.is_relative_to(root)):
            escapes.update(dict.fromkeys(positions, f"leads to {real}"))
            continue
        is_link = _entries(real)
        for position in positions:
            name = names[position].rpartition("/")[2]
            if name not in is_link:
                missing.append(position)
            elif is_link[name]:
                target = _resolve(real / name)
                if target is None or not target.exists():
                    missing.append(position)
                elif not (follow_links or target.is_relative_to(root)):
                    escapes[position] = f"is a link to {target}"
    _refuse(root, names, escapes, absolute, Lookalikes.below(root) if absolute else None)
    return sorted(missing)


def relative_names(root: Path, names: Sequence[str]) -> list[str]:
    """``names`` with the absolute ones that lie below ``root`` made relative to it.

    The folder of a name may be spelt with symbolic links; whether the file itself is one that leads
    out is for :func:`check_files` to say.

    Args:
        root: absolute real path of the image folder.
        names: of files, relative to ``root`` or absolute.
    """
    real: dict[str, Path | None] = {}
    relative = list(names)
    for position, name in enumerate(names):
        folder, _, base = name.rpartition("/")
        if not name.startswith("/") or base in _NO_FILES:
            continue
        if folder not in real:
            plain = Path(os.path.normpath(folder or "/"))
            real[folder] = plain if plain.is_relative_to(root) else _resolve(plain)
        found = real[folder]
        if found is not None and found.is_relative_to(root):
            relative[position] = (found.relative_to(root) / base).as_posix()
    return relative


def files_in_order(root: Path, rules: ReadRules) -> list[str]:
    """The files of a folder and of all below it, relative to it, in the order of their names.

    Raises:
        SecurityError: a linked folder leads out of ``root``, and links are not followed.
    """
    found = files_below(root, follow_links=rules.follow_links)
    return sorted(found, key=lambda name: name.split("/"))


def check_names(where: str, names: Sequence[str]) -> None:
    """Refuse names that lead out of a place of which nothing else is known.

    Raises:
        SecurityError: one is absolute or leads out; the first hundred are listed.
    """
    absolute = [position for position, name in enumerate(names) if name.startswith("/")]
    escapes = {
        position: f"leads to {path}"
        for position, name in enumerate(names)
        if (path := posixpath.normpath(f"./{name}")) == ".." or path.startswith("../")
    }
    _refuse(where, names, escapes, absolute)


def _resolve(path: Path) -> Path | None:
    """The real path; None of a name that no file can have.

    Links in a circle stay in it, which is what Path.resolve does from Python 3.13 on; opening such
    a path fails.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return None


def _entries(folder: Path) -> dict[str, bool]:
    """Name of each entry of a folder, and whether it is a symbolic link; none if it has none."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.is_symlink() for entry in entries}
    except (OSError, ValueError):
        return {}


def _refuse(
    where: Path | str,
    names: Sequence[str],
    escapes: dict[int, str],
    absolute: Sequence[int],
    there: Lookalikes | None = None,
) -> None:
    """Refuse names that lead out of ``where`` and absolute ones, of which ``there`` may have some.

    Raises:
        SecurityError: there are any.
    """
    lines: list[str] = []
    if absolute:
        lines.append(
            f"{len(absolute)} file name(s) are absolute and not of the image folder {where}"
        )
        lines += _listed(
            names,
            {
                position: f"is absolute; {found}" if found else "is absolute"
                for position in absolute
                for found in [there.of(names[position]) if there is not None else None]
            },
        )
        lines.append(
            "names of images are relative to their folder: correct them in the annotations, or "
            "name the folder that these begin with as the images of this split"
        )
    if escapes:
        lines.append(f"{len(escapes)} file name(s) lead out of the image folder {where}")
        lines += _listed(names, escapes)
        lines.append(
            "images must lie under the folder; copy them there, choose a higher folder, or allow "
            "links that you trust with data.follow_links=true"
        )
    if lines:
        raise SecurityError("\n".join(lines))


def _listed(names: Sequence[str], problems: dict[int, str]) -> list[str]:
    """A line for each of the first problems."""
    listed = sorted(problems.items())[:MAX_PROBLEMS]
    lines = [f"  image {position}: {names[position]!r} {why}" for position, why in listed]
    if len(problems) > len(listed):
        lines.append(f"  ... and {len(problems) - len(listed)} more")
    return lines


def stays_below(folder: Path, path: Path, *, follow_links: bool = False) -> bool:
    """Whether ``path``, symbolic links followed, lies under ``folder``, an absolute real path.

    With ``follow_links`` the name alone must not lead out of it.
    """
    if follow_links:
        return Path(os.path.normpath(path)).is_relative_to(folder)
    real = _resolve(path)
    return real is not None and real.is_relative_to(folder)
