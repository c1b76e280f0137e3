"""The tables of a COCO file as checked columns: 860,000 rows are validated as arrays.

Each check has a fast form over a whole column and a slow one over single rows, which only runs to
say where something is wrong. Pointers are JSON pointers (RFC 6901).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.findings import Problems

Check: TypeAlias = Callable[[Any], "str | None"]

_MISSING = object()
_SURROGATE = re.compile("[\ud800-\udfff]")
_INT64 = 1 << 63
_INT32 = 1 << 31
#: Beyond it, products of two sides would overflow.
_LARGEST = 1e150
_NUMBERS = frozenset((int, float))
_JSON_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def describe(value: object) -> str:
    """A JSON value as a message shows it: its kind, and the value itself where that is short."""
    kind = _JSON_NAMES[type(value)]
    if isinstance(value, (dict, list)):
        return kind
    text = repr(value)
    return kind if value is None else f"{kind} ({text if len(text) <= 40 else text[:37] + '...'})"


@dataclass(frozen=True)
class Table:
    """One top-level list of a COCO file.

    Attributes:
        pointer: of the list, such as ``/images``.
        rows: its objects.
        positions: position of each row in the file; differs from the row number once entries that
            are no objects have been reported and left out.
        problems: where to report.
    """

    pointer: str
    rows: list[dict[str, Any]]
    positions: NDArray[np.int64]
    problems: Problems

    @classmethod
    def of(cls, tree: Mapping[str, Any], key: str, problems: Problems) -> Table:
        """The list ``key`` of a file; empty, and reported, when it is missing or no list."""
        found = tree.get(key, _MISSING)
        rows: list[Any] = []
        if found is _MISSING:
            problems.add(f"/{key}", "missing, expected a list of objects")
        elif not isinstance(found, list):
            problems.add(f"/{key}", f"is {describe(found)}, expected a list of objects")
        else:
            rows = found
        good = [i for i, row in enumerate(rows) if type(row) is dict]
        if len(good) != len(rows):
            for i in sorted(set(range(len(rows))) - set(good)):
                problems.add(f"/{key}/{i}", f"is {describe(rows[i])}, expected an object")
        kept = [rows[i] for i in good] if len(good) != len(rows) else rows
        return cls(f"/{key}", kept, np.array(good, dtype=np.int64), problems)

    def __len__(self) -> int:
        return len(self.rows)

    def without(self, row: int | None) -> Table:
        """The table without one of its rows; all of it for None."""
        if row is None:
            return self
        keep = [position for position in range(len(self)) if self.positions[position] != row]
        rows = [self.rows[position] for position in keep]
        return Table(self.pointer, rows, self.positions[keep], self.problems)

    def at(self, row: int, key: str = "") -> str:
        """JSON pointer of a row, or of one of its values."""
        return f"{self.pointer}/{self.positions[row]}" + (f"/{key}" if key else "")

    def report(self, rows: NDArray[np.bool_], key: str, text: Callable[[int], str]) -> None:
        """Report every marked row at ``key``."""
        for row in np.flatnonzero(rows):
            self.problems.add(self.at(int(row), key), text(int(row)))

    def _values(
        self, key: str, accepted: Collection[type], expected: str, check: Check, default: object
    ) -> tuple[list[Any], NDArray[np.bool_]]:
        """Column ``key`` with unacceptable values replaced by None, and which were acceptable."""
        values = [row.get(key, default) for row in self.rows]
        good = np.ones(len(values), dtype=bool)
        for row, value in enumerate(values):
            if value is _MISSING:
                text: str | None = f"missing, expected {expected}"
            elif type(value) not in accepted:
                text = f"is {describe(value)}, expected {expected}"
            else:
                text = check(value)
            if text is not None:
                self.problems.add(self.at(row, key), text)
                values[row], good[row] = None, False
        return values, good

    def ints(
        self, key: str, *, low: int = -_INT64, high: int = _INT64 - 1, default: object = _MISSING
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """A column of integers within [low, high]; zero where it was not acceptable."""
        values = [row.get(key, default) for row in self.rows]
        if set(map(type, values)) <= {int} and (
            not values or (min(values) >= low and max(values) <= high)
        ):
            return np.array(values, dtype=np.int64), np.ones(len(values), dtype=bool)

        def in_range(value: int) -> str | None:
            limits = f"{low}..{high}" if high < _INT64 - 1 else "a 64-bit integer"
            return None if low <= value <= high else f"is {value}, allowed is {limits}"

        values, good = self._values(key, (int,), "an integer", in_range, default)
        return np.array([value or 0 for value in values], dtype=np.int64), good

    def sizes(self, key: str) -> NDArray[np.int32]:
        """A column of image sizes in pixels."""
        return self.ints(key, low=1, high=_INT32 - 1)[0].astype(np.int32)

    def strings(self, key: str) -> list[str]:
        """A column of non-empty strings that can be written as UTF-8."""

        def text(value: str) -> str | None:
            if value and (value.isascii() or not _SURROGATE.search(value)):
                return None
            found = "holds half of a surrogate pair" if value else "is empty"
            return f"{found}, expected a non-empty string"

        values, _ = self._values(key, (str,), "a string", text, _MISSING)
        return [value or "" for value in values]

    def lacking(self, key: str) -> NDArray[np.bool_]:
        """(n,) bool: rows without ``key``."""
        return np.array([key not in row for row in self.rows], dtype=bool)

    def flags(self, key: str) -> NDArray[np.bool_]:
        """An optional column of 0 or 1; False where it is missing."""

        def zero_or_one(value: int) -> str | None:
            return None if value in (0, 1) else f"is {value}, expected 0 or 1"

        values, _ = self._values(key, (int, bool), "0 or 1", zero_or_one, 0)
        return np.array([bool(value) for value in values], dtype=bool)

    def areas(self, key: str) -> NDArray[np.float64]:
        """An optional column of finite numbers >= 0; 0 where it is missing."""

        def non_negative(value: float) -> str | None:
            good = 0 <= value <= _LARGEST
            return None if good else f"is {str(value)[:40]}, expected a finite number >= 0"

        values, _ = self._values(key, _NUMBERS, "a number", non_negative, 0.0)
        return np.array([value or 0.0 for value in values], dtype=np.float64)

    def boxes(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """A column of ``[x, y, width, height]``; zeros where it was not acceptable."""
        values = [row.get(key, _MISSING) for row in self.rows]
        boxes = _plain_boxes(values)
        if boxes is None or not (np.abs(boxes) <= _LARGEST).all():
            values, good = self._values(
                key, (list,), "[x, y, width, height]", _box_problem, _MISSING
            )
            zeros = [0.0] * 4
            boxes = np.array([v or zeros for v in values], dtype=np.float64).reshape(-1, 4)
            return boxes, good
        return boxes, np.ones(len(boxes), dtype=bool)

    def report_duplicates(self, key: str, values: NDArray[np.int64]) -> None:
        """Report every value of a column that occurred before."""
        ranks = np.argsort(values, kind="stable")
        again = np.flatnonzero(values[ranks][1:] == values[ranks][:-1])
        for where in again[np.argsort(ranks[again + 1])]:
            row, before = int(ranks[where + 1]), int(ranks[where])
            self.problems.add(
                self.at(row, key), f"{values[row]} is already the {key} of {self.at(before)}"
            )


def _plain_boxes(values: list[Any]) -> NDArray[np.float64] | None:
    """(n, 4) when every value is a list of four numbers that fit a float, else None."""
    if not set(map(type, values)) <= {list} or not set(map(len, values)) <= {4}:
        return None
    flat = list(chain.from_iterable(values))
    if not set(map(type, flat)) <= _NUMBERS:
        return None
    try:
        return np.array(flat, dtype=np.float64).reshape(-1, 4)
    except OverflowError:
        return None


def _box_problem(value: list[Any]) -> str | None:
    if len(value) != 4:
        return f"has {len(value)} values, expected [x, y, width, height]"
    for name, number in zip(("x", "y", "width", "height"), value, strict=True):
        if type(number) not in _NUMBERS:
            return f"{name} is {describe(number)}, expected a number"
        if not abs(number) <= _LARGEST:
            return f"{name} is {str(number)[:40]}, expected a finite number"
    return None


def positions_in(
    values: NDArray[np.int64], known: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Position of each value in ``known`` (distinct), and whether it is there at all."""
    if len(known) == 0:
        return np.zeros(len(values), dtype=np.int64), np.zeros(len(values), dtype=bool)
    ranks = np.argsort(known)
    slots = np.searchsorted(known, values, sorter=ranks).clip(max=len(known) - 1)
    found = ranks[slots]
    return found.astype(np.int64, copy=False), known[found] == values
