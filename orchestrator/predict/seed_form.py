"""What ``orchestrator predict`` writes by itself, read again: an object by path of the picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from orchestrator.data.files import read_text_bytes, reason
from orchestrator.data.findings import CONTROL, Problems
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.coco_tables import describe
from orchestrator.errors import DataError
from orchestrator.predict.prediction import Prediction

#: Labels, which count from 0, stay below it: what names them has a place for each.
_MOST_LABELS = 1 << 16
_LARGEST_SIDE = (1 << 31) - 1
_LARGEST_NUMBER = 1e150
#: Halves of pairs, but for those that stand for a byte of a path that is no UTF-8.
_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_BOX = ("x_min", "y_min", "width", "height")
_NEXT = "draw reads what `orchestrator predict` writes without --form coco; predict again"


def read_seed_json(path: Path) -> tuple[list[Prediction], LabelMap]:
    """Predictions, and the classes that occur in them.

    A label below the highest that no detection has gets a name and an id of no meaning.

    Raises:
        DataError: it cannot be read, or is of another form; the first hundred places are listed.
    """
    tree = _load(path)
    problems = Problems(str(path))
    reader = _Reader(problems)
    found = []
    for key, entry in tree.items():
        one = reader.prediction(key, entry)
        if one is not None:
            found.append(one)
    problems.raise_any(_NEXT)
    return found, _label_map(reader.classes)


def _label_map(classes: dict[int, tuple[str, int]]) -> LabelMap:
    names = {name for name, _ in classes.values()}
    lowest = min((number for _, number in classes.values()), default=0)
    used = []
    for label in range(max(classes, default=0) + 1):
        filler = f"label {label}"
        while filler in names:
            filler += "'"
        used.append(classes.get(label, (filler, lowest - 1 - label)))
    return LabelMap(tuple(name for name, _ in used), tuple(number for _, number in used))


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(read_text_bytes(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; {_NEXT}") from error
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise DataError(f"{place}: not valid JSON ({error.msg}); {_NEXT}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); {_NEXT}") from error
    except RecursionError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); {_NEXT}") from error
    if isinstance(tree, list):
        raise DataError(
            f"{path}: is a list, as COCO results are, without the paths of pictures\n{_NEXT}"
        )
    if not isinstance(tree, dict):
        raise DataError(f"{path}: the top level is {describe(tree)}, expected an object\n{_NEXT}")
    return tree


class _Reader:
    """Reads one picture after the other.

    Attributes:
        classes: name and id of each label that occurs.
    """

    def __init__(self, problems: Problems) -> None:
        self.classes: dict[int, tuple[str, int]] = {}
        self._problems = problems
        self._label_of: dict[tuple[str, object], int] = {}

    def prediction(self, key: str, entry: Any) -> Prediction | None:
        """The predictions of a picture; None, and problems, where they cannot be understood."""
        place, before = f"/{key}", self._problems.count
        if not key or "\0" in key or _SURROGATE.search(key):
            self._problems.add(ascii(place), "is the path of no picture")
        if not isinstance(entry, dict):
            self._problems.add(place, f"is {describe(entry)}, expected an object")
            return None
        height, width = (
            self._whole(f"{place}/{name}", entry.get(name), 1, _LARGEST_SIDE)
            for name in ("height", "width")
        )
        rows = entry.get("predictions")
        if not isinstance(rows, list):
            self._problems.add(f"{place}/predictions", f"is {describe(rows)}, expected a list")
            return None
        boxes, labels, scores = [], [], []
        for number, row in enumerate(rows):
            at = f"{place}/predictions/{number}"
            if not isinstance(row, dict):
                self._problems.add(at, f"is {describe(row)}, expected an object")
                continue
            boxes.append(self._box(f"{at}/bbox", row.get("bbox")))
            labels.append(self._class(f"{at}/class", row.get("class")))
            scores.append(self._number(f"{at}/score", row.get("score")))
        if self._problems.count > before:
            return None
        return Prediction(
            key=key, height=height, width=width, boxes=boxes, labels=labels, scores=scores
        )

    def _box(self, place: str, box: Any) -> list[float]:
        if not isinstance(box, dict):
            self._problems.add(
                place, f"is {describe(box)}, expected an object of {', '.join(_BOX)}"
            )
            return []
        left, top, width, height = (self._number(f"{place}/{n}", box.get(n)) for n in _BOX)
        return [left, top, left + width, top + height]

    def _class(self, place: str, kind: Any) -> int:
        if not isinstance(kind, dict):
            self._problems.add(place, f"is {describe(kind)}, expected an object")
            return 0
        label = self._whole(f"{place}/label", kind.get("label"), 0, _MOST_LABELS - 1)
        number = self._whole(f"{place}/category_id", kind.get("category_id"), -(1 << 63), 1 << 63)
        name = kind.get("name")
        if not isinstance(name, str) or not name or CONTROL.search(name):
            self._problems.add(
                f"{place}/name", f"is {describe(name)}, expected the name of a class"
            )
            return 0
        self._agree(place, label, name, number)
        return label

    def _agree(self, place: str, label: int, name: str, number: int) -> None:
        """A label has one name and one id, and these no other label."""
        known = self.classes.setdefault(label, (name, number))
        if known != (name, number):
            self._problems.add(
                place,
                f"label {label} is {name!r} with id {number} here, and {known[0]!r} with id "
                f"{known[1]} before",
            )
        for what, value in (("name", name), ("category_id", number)):
            other = self._label_of.setdefault((what, value), label)
            if other != label:
                self._problems.add(
                    place,
                    f"{what} {value!r} is that of label {label} here, and of label {other} before",
                )

    def _whole(self, place: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int:
            self._problems.add(place, f"is {describe(value)}, expected a whole number")
        elif not low <= value <= high:
            self._problems.add(place, f"is {str(value)[:40]}, allowed is {low}..{high}")
        else:
            return value
        return low

    def _number(self, place: str, value: Any) -> float:
        if type(value) not in (int, float):
            self._problems.add(place, f"is {describe(value)}, expected a number")
        elif not abs(value) <= _LARGEST_NUMBER:
            self._problems.add(place, f"is {str(value)[:40]}, expected a finite number")
        else:
            return float(value)
        return 0.0
