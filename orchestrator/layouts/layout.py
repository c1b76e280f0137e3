"""A data set as it lies in a folder: its format, its splits and where its classes are named."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

from orchestrator.errors import DataError

#: Annotation formats that this program reads and writes, as ``data.format`` names them.
Kind: TypeAlias = Literal["coco", "voc", "txt", "yolo"]
FORMATS: Final[tuple[Kind, ...]] = get_args(Kind)

#: What a folder was annotated for, as Ultralytics calls it. Of all but ``detect``, YOLO's lines
#: hold more than boxes.
Task: TypeAlias = Literal["detect", "segment", "obb", "pose"]

#: Usual names of splits, most usual first.
SPLITS = ("train", "val", "valid", "validation", "test", "trainval")
#: Name of the only split of a folder that has none.
ALL = "all"

_TRAIN = ("train", "training", "trainval")
_VAL = ("val", "valid", "validation", "dev")


@dataclass(frozen=True)
class Place:
    """Where one split of a data set lies.

    Attributes:
        images: folder of the images.
        annotations: what :class:`~orchestrator.config.schema.SplitConfig` calls so.
    """

    images: Path
    annotations: Path


@dataclass(frozen=True)
class Layout:
    """What was found in a folder.

    Attributes:
        title: whose layout it is, for people.
        kind: format of the annotations.
        root: folder of the data set.
        splits: by their names there, or by the usual spelling of these.
        classes: file that names the classes; None where the annotations do.
        notes: what a reader of the result should know, one line each.
    """

    title: str
    kind: Kind
    root: Path
    splits: Mapping[str, Place]
    classes: Path | None = None
    notes: tuple[str, ...] = field(default=())

    def pair(self) -> tuple[str, str] | None:
        """Names of the splits to learn from and to evaluate on; None where there are no two.

        Without a split for validation the one for tests takes its place.
        """
        train = _named(self.splits, _TRAIN, "train")
        val = _named(self.splits, _VAL, "val") or _named(self.splits, ("test",), "test")
        if train is None or val is None or self.splits[train] == self.splits[val]:
            return None
        return train, val

    def require_pair(self) -> tuple[str, str]:
        """Like :meth:`pair`.

        Raises:
            DataError: there are no two splits.
        """
        pair = self.pair()
        if pair is None:
            found = ", ".join(self.splits)
            notes = "".join(f"\n  {note}" for note in self.notes)
            if len(set(self.splits.values())) == 1:
                step = f"`orchestrator init {self.root}` splits them and writes an experiment file"
            elif self.kind == "coco":
                first = next(iter(self.splits.values())).annotations
                step = f"`orchestrator init {first}` splits the images of that file"
            else:
                step = "call two of them train and val"
            raise DataError(
                f"{self.root}: {self.title}, but no images to learn from and others to evaluate "
                f"on; found: {found}{notes}\nNext: {step}, or name data.train and data.val"
            )
        return pair

    def relative(self, path: Path) -> str:
        """``path`` from :attr:`root`, as an experiment file has it."""
        return os.path.relpath(path, self.root)


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """Those of ``names`` that splits usually have, most usual first, by their usual spelling.

    Capitals do not matter: CVAT writes ``Train`` and ``Validation``, as its subsets are called.
    """
    # In order, so that of two spellings the one in small letters counts.
    there = {name.lower(): name for name in sorted(names)}
    return {split: there[split] for split in SPLITS if split in there}


def _named(splits: Iterable[str], usual: tuple[str, ...], start: str) -> str | None:
    """The split with a usual name, or the shortest name that begins like one: ``val2017``."""
    names = {name.lower(): name for name in splits}
    exact = [names[name] for name in usual if name in names]
    longer = sorted((name for name in names if name.startswith(start)), key=len)
    return next(iter([*exact, *(names[name] for name in longer)]), None)
