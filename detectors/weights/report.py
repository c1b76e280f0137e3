"""What became of every tensor of a file and of every tensor of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

#: ``loaded``: taken as it is. ``adapted``: taken after a change of shape, type or selection.
#: ``missing``: the network's, not filled. ``left over``: the file's, not used.
Status = Literal["loaded", "adapted", "missing", "left over"]

_ORDER: tuple[Status, ...] = ("loaded", "adapted", "missing", "left over")


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Attributes:
        status: what became of it.
        name: in the network; None for one that is left over.
        shape: in the network.
        source: its name in the file; None for one that is missing.
        source_shape: in the file.
        note: what was changed, or why it was not taken.
    """

    status: Status
    name: str | None
    shape: tuple[int, ...] | None
    source: str | None
    source_shape: tuple[int, ...] | None
    note: str = ""

    def __str__(self) -> str:
        sides = []
        if self.source is not None:
            sides.append(f"{self.source} {_text(self.source_shape)}")
        if self.name is not None:
            sides.append(f"{self.name} {_text(self.shape)}")
        note = f"  ({self.note})" if self.note else ""
        return f"{self.status:<9}  {' -> '.join(sides)}{note}"


def _text(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) or "scalar" if shape is not None else ""


@dataclass(frozen=True)
class Report:
    """Every tensor, in the order of the network, then of the file.

    Attributes:
        layout: name of the layout the file was recognised as.
        entries: one for each tensor of the network and each left over one of the file.
        advice: a line for each setting of the network that is not what the weights were trained
            with, though every tensor fits.
    """

    layout: str
    entries: tuple[Entry, ...]
    advice: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Status, int]:
        """Number of tensors by status, all four always there."""
        found = Counter(entry.status for entry in self.entries)
        return {status: found[status] for status in _ORDER}

    @property
    def taken(self) -> int:
        """Tensors of the network that were filled."""
        return self.counts["loaded"] + self.counts["adapted"]

    def of(self, *statuses: Status) -> list[Entry]:
        """Entries with one of these statuses."""
        return [entry for entry in self.entries if entry.status in statuses]

    def summary(self) -> str:
        """One line: the layout and the four counts."""
        counts = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        return f"{self.layout}: {counts}"

    def lines(self, statuses: Iterable[Status] = _ORDER) -> list[str]:
        """One line for each tensor with one of ``statuses``."""
        wanted = tuple(statuses)
        return [str(entry) for status in _ORDER if status in wanted for entry in self.of(status)]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {
            "layout": self.layout,
            "counts": dict(self.counts),
            "advice": list(self.advice),
            "tensors": [dict(entry.__dict__) for entry in self.entries],
        }
