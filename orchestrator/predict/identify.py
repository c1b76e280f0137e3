"""Which image of an annotation file a picture is, and which class of it a label is.

Two cameras call their pictures alike, so a base name identifies nothing. A picture is the image
whose ``file_name`` its path ends in, folders included.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError, nearest
from orchestrator.storage.address import is_remote

_SHOWN = 5


@dataclass(frozen=True)
class Identified:
    """What :func:`identify` found.

    Attributes:
        position: of the image of each picture, by the picture's key.
        unknown: keys of pictures that are none of the images.
    """

    position: Mapping[str, int]
    unknown: tuple[str, ...]


def identify(keys: Iterable[str], files: Sequence[str], *, source: str) -> Identified:
    """Find the image that each picture is.

    Args:
        keys: paths or URIs of pictures.
        files: names of the images, as annotated.
        source: of these names, for messages.

    Raises:
        DataError: a picture may be one of several images, or two pictures are one image.
    """
    by_parts: dict[tuple[str, ...], list[int]] = {}
    for position, file in enumerate(files):
        by_parts.setdefault(_parts(file), []).append(position)
    lengths = sorted({len(parts) for parts in by_parts}, reverse=True)
    position_of: dict[str, int] = {}
    taken: dict[int, str] = {}
    unknown = []
    for key in keys:
        parts = _parts(key if is_remote(key) else str(Path(key).absolute()))
        found = next((by_parts[parts[-n:]] for n in lengths if n and parts[-n:] in by_parts), None)
        if found is None:
            unknown.append(key)
            continue
        if len(found) > 1:
            raise DataError(
                f"{key} may be any of {len(found)} images that {source} calls {files[found[0]]}\n"
                "give the images file names with the folders that tell them apart"
            )
        other = taken.setdefault(found[0], key)
        if other != key:
            raise DataError(
                f"{other} and {key} are both the image that {source} calls {files[found[0]]}\n"
                "name one of them, or give the images file names with the folders that tell them "
                "apart"
            )
        position_of[key] = found[0]
    return Identified(position_of, tuple(unknown))


def require_all(found: Identified, files: Sequence[str], *, source: str) -> None:
    """Refuse pictures that are none of the images, with the likeliest match of the first.

    Raises:
        DataError: there are some.
    """
    if not found.unknown:
        return
    first = found.unknown[0]
    name = posixpath.basename(first)
    alike = [file for file in files if posixpath.basename(file) == name]
    guess = alike[0] if alike else nearest(first, list(files)[:10_000])
    hint = (
        f"; {source} has {guess}, which is not at the end of this path"
        if alike
        else (f"; the nearest is {guess}" if guess else "")
    )
    total = len(found.unknown) + len(found.position)
    raise DataError(
        f"{len(found.unknown)} of {total} inputs are not in {source}; the first is {first}{hint}\n"
        "a picture is the image whose file_name its path ends in, folders included"
    )


def _parts(path: str) -> tuple[str, ...]:
    normal = posixpath.normpath(path.replace("\\", "/"))
    return tuple(part for part in normal.split("/") if part not in ("", "."))


@dataclass(frozen=True)
class ClassMatch:
    """Classes of one map in terms of another.

    Attributes:
        labels: (K,) label of each class in the other map.
        note: what is to be said about it; None where both are the same.
    """

    labels: NDArray[np.int64]
    note: str | None


def match_classes(mine: LabelMap, theirs: LabelMap, *, here: str, there: str) -> ClassMatch:
    """Map classes by name.

    Args:
        mine: whose labels are to be translated.
        theirs: what they are translated to; may have more classes.
        here, there: where each comes from, for messages.

    Raises:
        DataError: a class of ``mine`` is not among ``theirs``; both are printed.
    """
    label_of = {name: label for label, name in enumerate(theirs.names)}
    if any(name not in label_of for name in mine.names):
        mine.require_equal(theirs, here=here, there=there)
    labels = np.array([label_of[name] for name in mine.names], np.int64)
    if mine == theirs:
        return ClassMatch(labels, None)
    pairs = [
        f"{name}: {mine.ids[label]} -> {theirs.ids[label_of[name]]}"
        for label, name in enumerate(mine.names)
        if mine.ids[label] != theirs.ids[label_of[name]]
    ]
    more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    changed = f" ({', '.join(pairs[:_SHOWN])}{more})" if pairs else ", their ids are equal"
    return ClassMatch(labels, f"classes of {here} are mapped by name to those of {there}{changed}")
