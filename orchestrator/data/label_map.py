"""The one mapping between data-set category ids, contiguous labels and class names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.errors import DataError
from orchestrator.storage.plain_files import parse_json, read_json


@dataclass(frozen=True)
class LabelMap:
    """Names and data-set ids of the classes, in the order of their contiguous labels.

    Label ``k`` (0 <= k < K) is the class ``names[k]``, whose id in the annotation file is
    ``ids[k]``. Background has no entry: it is a detector's private matter. The map is saved in
    every checkpoint, export and tracked run, and compared wherever two of them meet.

    Raises:
        DataError: no classes, or a name or id that occurs twice.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("label map: no classes; the data set must declare at least one")
        if len(self.names) != len(self.ids):
            raise DataError(f"label map: {len(self.names)} names but {len(self.ids)} ids")
        for what, values in (("name", self.names), ("id", self.ids)):
            seen: set[object] = set()
            for value in values:
                if value in seen:
                    raise DataError(f"label map: category {what} {value!r} occurs twice")
                seen.add(value)

    @classmethod
    def from_categories(cls, categories: Sequence[Mapping[str, Any]]) -> LabelMap:
        """Build from COCO ``categories`` entries, ordered by id."""
        ordered = sorted(categories, key=lambda category: int(category["id"]))
        return cls(
            names=tuple(str(category["name"]) for category in ordered),
            ids=tuple(int(category["id"]) for category in ordered),
        )

    @classmethod
    def from_json(cls, text: str) -> LabelMap:
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: the text says no names and ids.
            DataError: they are those of no label map.
        """
        tree = parse_json(text)
        names, ids = (tree.get(key) if isinstance(tree, dict) else None for key in ("names", "ids"))
        if not (
            isinstance(names, list)
            and isinstance(ids, list)
            and all(isinstance(name, str) for name in names)
            and all(isinstance(number, int) for number in ids)
        ):
            raise ValueError(
                "label map: expected lists of names, which are texts, and of whole ids"
            )
        return cls(names=tuple(names), ids=tuple(map(int, ids)))

    def to_json(self) -> str:
        """Canonical JSON text: equal maps give equal bytes."""
        return json.dumps({"names": list(self.names), "ids": list(self.ids)}, ensure_ascii=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def label_of_id(self) -> dict[int, int]:
        """Contiguous label of each data-set category id."""
        return {category_id: label for label, category_id in enumerate(self.ids)}

    def require_equal(self, other: LabelMap, *, here: str, there: str) -> None:
        """Raise unless both maps are the same, printing both side by side.

        Args:
            other: the map to compare with.
            here: where this map comes from, for the message.
            there: where ``other`` comes from.
        """
        if self == other:
            return
        rows = [f"label maps differ: {here} against {there}"]
        for label in range(max(len(self), len(other))):
            mine = f"{self.ids[label]}:{self.names[label]}" if label < len(self) else "-"
            theirs = f"{other.ids[label]}:{other.names[label]}" if label < len(other) else "-"
            mark = "  " if mine == theirs else "! "
            rows.append(f"  {mark}label {label}: {mine:<24} {theirs}")
        raise DataError("\n".join(rows))


def read_label_map(path: str | Path) -> LabelMap:
    """The label map of a run, or the categories of COCO annotations.

    Raises:
        DataError: it is neither.
    """
    path = Path(path)
    try:
        tree = read_json(path)
        if "categories" in tree:
            return LabelMap.from_categories(tree["categories"])
        return LabelMap.from_json(json.dumps(tree))
    except OSError as error:
        raise DataError(f"{path}: the label map cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise DataError(
            f"{path}: neither a run's label_map.json nor COCO annotations with `categories`"
        ) from error
