"""What a reader says about an annotation file: problems that stop it, findings that do not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.data.dataset import Dataset
from orchestrator.errors import DataError, printable

#: Problems that are printed one by one; the rest is counted.
MAX_PROBLEMS = 100
#: What a name must not hold: it would move the cursor of a terminal, turn the text around, or, half
#: of a surrogate pair, be no text that can be written.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: Places that a finding names.
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something a reader noticed and dealt with.

    Attributes:
        kind: short stable name, such as ``zero_size_box``.
        count: how often it occurred.
        action: what was done about it.
        examples: where the first few are.
    """

    kind: str
    count: int
    action: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        examples = [printable(one) for one in self.examples]
        where = f" ({', '.join(examples)}{', ...' if self.count > len(self.examples) else ''})"
        return f"{self.kind}: {self.count} {self.action}{where if self.examples else ''}"

    @classmethod
    def at(cls, kind: str, action: str, places: Sequence[str]) -> Finding:
        """A finding for each of ``places``, the first few of which are kept as examples."""
        return cls(kind, len(places), action, tuple(places[:MAX_EXAMPLES]))


@dataclass(frozen=True)
class ReadResult:
    """A data set as read, with everything that was noticed on the way.

    Attributes:
        dataset: the valid, sanitised records.
        findings: one per kind that occurred.
        manifest: file that keeps all this, see :mod:`orchestrator.data.readers.annotation_cache`;
            None for none.
        unkept: why there is none although one was wanted.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    manifest: Path | None = None
    unkept: str | None = None


@dataclass
class Problems:
    """Collects everything wrong with one file, so that it can be said in one go.

    Attributes:
        source: the file, as the message names it.
        count: problems noted so far.
    """

    source: str
    count: int = 0
    _lines: list[str] = field(default_factory=list)

    def add(self, place: str, text: str) -> None:
        """Note a problem at ``place``, a JSON pointer or a line number."""
        self.count += 1
        if self.count <= MAX_PROBLEMS:
            self._lines.append(f"  {place}: {text}")

    def raise_any(self, step: str = "correct these entries in the file and run again") -> None:
        """Raise a DataError that lists all problems noted so far, if there are any.

        Args:
            step: what to do next.
        """
        if not self.count:
            return
        lines = [f"{self.source}: {self.count} problem{'s' if self.count > 1 else ''}"]
        lines += self._lines
        if self.count > MAX_PROBLEMS:
            lines.append(f"  ... and {self.count - MAX_PROBLEMS} more")
        lines.append(step)
        raise DataError("\n".join(lines))
