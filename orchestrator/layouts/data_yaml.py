"""``data.yaml`` of Ultralytics and Roboflow: names of the classes and folders of the splits.

Source: https://docs.ultralytics.com/datasets/detect. ``path`` is the folder of the data set,
``train``, ``val`` and ``test`` name image folders or lists of images in it, ``names`` is a list of
classes or a map from their numbers. The labels of ``images`` lie in the ``labels`` beside it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from orchestrator.errors import DataError
from orchestrator.layouts.files import first_lines, is_file, is_folder
from orchestrator.layouts.layout import Place, usual_names

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MAX_BYTES = 1 << 20
#: What YAML takes for nothing, unless it stands in quotes.
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
if TYPE_CHECKING:
    _BaseLoader = yaml.BaseLoader
else:
    # The parser in C takes a twentieth of the time.
    _BaseLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


class _Loader(_BaseLoader):
    """All scalars stay text, since a class called `no` or `12` is one; null is empty text."""

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        plain = not node.style and node.value in _NULLS
        return "" if plain else str(node.value)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Keys and values of a node; a key that stands there twice is an error."""
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            first = seen.setdefault(str(key.value), key)
            if first is not key:
                raise yaml.constructor.ConstructorError(
                    problem=f"{str(key.value)[:40]!r} stands in line {first.start_mark.line + 1} "
                    "already",
                    problem_mark=key.start_mark,
                )
        return dict(super().construct_mapping(node, deep=deep))


@dataclass(frozen=True)
class DataYaml:
    """Content of such a file.

    Attributes:
        names: of the classes, by number.
        root: folder of the data set.
        splits: the splits that are there.
        notes: what is named and is not there.
    """

    names: tuple[str, ...]
    root: Path
    splits: dict[str, Place]
    notes: tuple[str, ...]


def is_data_yaml(path: Path) -> bool:
    """Whether a file is one, and no experiment or other YAML."""
    try:
        tree = _tree(path)
    except DataError:
        return False
    return "names" in tree and ("nc" in tree or not _SPLITS.keys().isdisjoint(_split_keys(tree)))


def read_names(path: Path) -> tuple[str, ...]:
    """The classes, by number.

    Raises:
        DataError: the file cannot be understood, or its classes do not count from 0.
    """
    return _names(_tree(path), path)


def read_data_yaml(path: Path) -> DataYaml:
    """Read the file and look for what it names.

    Raises:
        DataError: it cannot be understood, or names several places for one split.
    """
    tree = _tree(path)
    names = _names(tree, path)
    bases = _bases(tree, path)
    splits, notes = {}, []
    root = path.parent
    keys = _split_keys(tree)
    for usual, split in _SPLITS.items():
        key = keys.get(usual, usual)
        entry = tree.get(key)
        if not entry or split in splits:
            continue
        if isinstance(entry, list) and len(entry) == 1:
            (entry,) = entry
        if not isinstance(entry, str):
            raise DataError(
                f"{path}: {key} names {len(entry)} places, and a split is read from one\n"
                f"Next: list all its images in one text file, one path a line, and name that"
            )
        found = _find(entry, bases, path, key)
        if found is None:
            notes.append(f"{path.name} names {key}: {entry}, which is not there")
            continue
        root, place = found
        splits[split] = place
    return DataYaml(names, root, splits, tuple(notes))


def _split_keys(tree: dict[str, Any]) -> dict[str, str]:
    return usual_names(str(key) for key in tree)


def _tree(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: has more than {_MAX_BYTES} bytes; is this a data.yaml?")
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = path if mark is None else f"{path}:{mark.line + 1}:{mark.column + 1}"
        raise DataError(f"{place}: cannot be read as YAML ({error.problem}); correct it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: cannot be read as YAML ({first[0]})") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path}: is no mapping, expected keys such as names, train and val")
    return tree


def _names(tree: dict[str, Any], path: Path) -> tuple[str, ...]:
    names = tree.get("names")
    if isinstance(names, dict):
        numbers = [str(number) for number in range(len(names))]
        if sorted(names, key=str) != sorted(numbers):
            raise DataError(
                f"{path}: names has the numbers {', '.join(map(str, names))}; expected are 0 to "
                f"{len(names) - 1}, which the label files count by"
            )
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise DataError(f"{path}: names is no list of classes, such as names: [cell, plate]")
    if len(set(names)) != len(names) or not all(names):
        twice = sorted(name for name, times in Counter(names).items() if times > 1 or not name)
        raise DataError(f"{path}: names has {twice[0]!r} twice, or empty; each class needs its own")
    count = tree.get("nc")
    if count and count != str(len(names)):
        raise DataError(f"{path}: nc is {count}, but names has {len(names)} classes; correct one")
    return tuple(names)


def _bases(tree: dict[str, Any], path: Path) -> list[Path]:
    """Folders that the splits may be relative to, likeliest first."""
    folder = path.absolute().parent
    given = tree.get("path")
    bases = []
    if isinstance(given, str) and given:
        # The folder may have been moved, with its name or without.
        bases = [folder / given, folder.parent / given, folder / Path(given).name]
    return [base for base in [*bases, folder] if is_folder(base)]


def _find(entry: str, bases: list[Path], source: Path, key: str) -> tuple[Path, Place] | None:
    """The folder that an entry is relative to, and the split there; None where nothing is.

    Raises:
        DataError: what is there is neither a folder nor a list.
    """
    for base in bases:
        # Roboflow writes ../train/images for the train/images beside the file.
        for name in (entry, entry.removeprefix("../")):
            path = base / name
            if is_folder(path):
                return _tidy(base), _folder(_tidy(path))
            if path.suffix == ".txt" and is_file(path):
                return _tidy(base), _list(_tidy(path))
            if is_file(path):
                raise DataError(
                    f"{source}: {key} names {path}; allowed are a folder of images and a list of "
                    "their paths whose name ends in .txt"
                )
    return None


def _tidy(path: Path) -> Path:
    return path.resolve()


def _folder(images: Path) -> Place:
    if "images" not in images.parts and is_folder(images / "images"):
        images = images / "images"
    return Place(images, labels_beside(images))


def labels_beside(images: Path) -> Path:
    """The folder of label files of a folder of images: ``images`` on the path becomes ``labels``.

    Where no part of the path has that name, the label files lie beside the images, as Darknet has
    it.
    """
    parts = list(images.parts)
    for position in range(len(parts) - 1, 0, -1):
        if parts[position] == "images":
            return Path(*parts[:position], "labels", *parts[position + 1 :])
    return images


def _list(path: Path) -> Place:
    """A list of images: the folder is what they share up to ``images``, or the split's own."""
    first = next(iter(first_lines(path)), "")
    image = (path.parent / first).resolve()
    own = path.parent / "images" / path.stem
    # CVAT writes data/images/train/a.jpg for the images/train/a.jpg beside the list.
    if first.startswith("data/") and not is_file(image) and is_folder(own):
        return _folder(own)
    for parent in image.parents:
        if parent.name == "images":
            return Place(parent, path)
    return Place(image.parent, path)
