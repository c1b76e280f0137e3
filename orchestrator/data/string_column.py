"""Many strings in two arrays: what a worker maps from shared memory instead of copying."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """A fixed sequence of strings; equal to any other sequence of the same strings.

    A tuple of 118,000 file names takes 9 MB of every process that unpickles it; of two arrays Ray
    keeps one copy a node.

    Attributes:
        text: (bytes,) uint8, all strings one after the other in UTF-8.
        ends: (n,) int64 or int32, where each one ends.
    """

    text: NDArray[np.uint8]
    ends: NDArray[np.int64] | NDArray[np.int32]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The strings, as they are if they are :class:`Names` already."""
        if isinstance(names, Names):
            return names
        # What a file system gave may hold bytes that are no UTF-8.
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"name {index} of {n}")
        index %= n
        start = int(self.ends[index - 1]) if index else 0
        return self._decoded(start, int(self.ends[index]))

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self._decoded(start, end)
            start = end

    def _decoded(self, start: int, end: int) -> str:
        return self.text[start:end].tobytes().decode("utf-8", "surrogateescape")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            same = np.array_equal(self.ends, other.ends)
            return same and np.array_equal(self.text, other.text)
        if isinstance(other, (tuple, list)):
            return tuple(self) == tuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.text.tobytes(), len(self)))

    def joined(self, rows: slice, separator: bytes) -> bytes:
        """Some strings in a row, in UTF-8, as ``separator.join`` of them would give.

        Args:
            rows: of which, without a step.
            separator: one byte.
        """
        first, last, _ = rows.indices(len(self))
        ends = self.ends[first:last].astype(np.int64)
        start = int(self.ends[first - 1]) if first else 0
        text = self.text[start : int(ends[-1]) if len(ends) else start]
        return np.insert(text, ends[:-1] - start, separator[0]).tobytes()

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"Names({shown}{', ...' if len(self) > 3 else ''})"
