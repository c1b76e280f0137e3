"""What the doctor says: diagnoses with a verdict, and a report for programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

from orchestrator.data.findings import Finding
from orchestrator.data.readers.plausibility import BOXES_IN_CORNER
from orchestrator.errors import DataError, OrchestratorError, printable


class Verdict(IntEnum):
    """What happens because of a diagnosis, from harmless to fatal.

    ``NOTE``: nothing. ``REPAIR``: it is put right while reading. ``QUARANTINE``: the image is
    replaced by another one in training. ``WARNING``: a run starts, but its numbers do not mean what
    they seem to. ``REFUSE``: no run starts on this data set.
    """

    NOTE = 0
    REPAIR = 1
    QUARANTINE = 2
    WARNING = 3
    REFUSE = 4


#: Kind of the finding that an error becomes.
_ERROR = "unusable"

#: Verdict on what a reader found and dealt with.
_OF_READER = {
    "missing_image": Verdict.QUARANTINE,
    "unreadable_image": Verdict.QUARANTINE,
    "labels_without_image": Verdict.NOTE,
    "ignored_region": Verdict.NOTE,
    "counts_from_zero": Verdict.NOTE,
    "root_category": Verdict.NOTE,
    "passed_over": Verdict.NOTE,
    BOXES_IN_CORNER: Verdict.WARNING,
}


@dataclass(frozen=True)
class Diagnosis:
    """One finding, where it was made and what follows from it."""

    verdict: Verdict
    split: str
    finding: Finding

    def __str__(self) -> str:
        head = f"{self.verdict.name.lower():<10} {self.split}: "
        if self.finding.kind == _ERROR:  # its words count what they are about, a line for each
            lines = (f"{_ERROR}: {self.finding.action}", *self.finding.examples)
            return head + "\n  ".join(map(printable, lines))
        return f"{head}{self.finding}"

    def to_json(self) -> dict[str, Any]:
        """As the report has it."""
        return {
            "verdict": self.verdict.name.lower(),
            "split": self.split,
            **asdict(self.finding),
            "examples": list(self.finding.examples),
        }


@dataclass
class Report:
    """Everything the doctor found.

    Attributes:
        splits: facts about each split, as plain values.
        diagnoses: in the order they were made.
        exit_code: 0, or that of the error that a run on this data set would end with.
    """

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    exit_code: int = 0

    def add(self, verdict: Verdict, split: str, finding: Finding) -> None:
        """Note a finding."""
        self.diagnoses.append(Diagnosis(verdict, split, finding))
        if verdict is Verdict.REFUSE:
            self.exit_code = self.exit_code or DataError.exit_code

    def add_read(self, split: str, findings: Iterable[Finding]) -> None:
        """Note what a reader dealt with."""
        for finding in findings:
            self.add(_OF_READER.get(finding.kind, Verdict.REPAIR), split, finding)

    def add_error(self, split: str, error: OrchestratorError) -> None:
        """Note an error that keeps a run from starting."""
        first, *rest = str(error).splitlines()
        finding = Finding(_ERROR, max(1, len(rest) - 1), first, tuple(map(str.strip, rest)))
        self.add(Verdict.REFUSE, split, finding)
        self.exit_code = max(self.exit_code, error.exit_code)

    @property
    def worst(self) -> Verdict:
        """The gravest verdict."""
        return max((one.verdict for one in self.diagnoses), default=Verdict.NOTE)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "verdict": self.worst.name.lower() if self.diagnoses else "sound",
            "exit_code": self.exit_code,
            "findings": [one.to_json() for one in self.diagnoses],
            "splits": self.splits,
        }
