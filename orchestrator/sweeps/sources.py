"""Where the trials of a sweep come from, and the journal of what was given out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from orchestrator.config.schema import SweepConfig
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.plan import Planner, Trial, describe
from orchestrator.sweeps.report import Row
from orchestrator.sweeps.space import Values

#: States after which a trial never runs again.
FINAL = ("done", "stopped")


class Record:
    """All trials of a sweep that are known, and how they stand; writes the journal.

    Args:
        planner: of the sweep.
        journal: of the sweep.
        parameters: counts the learnable values of a trial's detector; None where nobody asks.
        changed: called after every trial that ended.
    """

    def __init__(
        self,
        planner: Planner,
        journal: Journal,
        *,
        parameters: Callable[[Trial], int] | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._planner = planner
        self._journal = journal
        self._parameters = parameters
        self._lock = Lock()
        self.changed = changed
        self.rows: dict[int, Row] = {}
        #: The trial that ended last.
        self.newest: Row | None = None
        #: Values that each trial began with.
        self._begun: dict[int, Values] = {}
        ends = journal.ends()
        for entry in journal.of("trial"):
            trial = planner.trial(entry["trial"], entry["values"])
            self._begun[trial.number] = trial.values
            end = ends.get(trial.number, {"state": "waiting"})
            # A member of a population may have ended as another than it began.
            last = end.get("values", trial.values)
            self._note(trial if last == trial.values else planner.trial(trial.number, last), end)

    @property
    def sweep(self) -> SweepConfig:
        """The section."""
        return self._planner.sweep

    def _note(self, trial: Trial, end: dict[str, Any]) -> None:
        count = None if self._parameters is None else self._parameters(trial)
        with self._lock:
            self.rows[trial.number] = Row(
                trial,
                end["state"],
                end.get("result"),
                end.get("reason"),
                parameters=count,
                exit_code=end.get("exit_code", OrchestratorError.exit_code),
            )

    def ordered(self) -> list[Row]:
        """All trials by number."""
        with self._lock:
            return [self.rows[number] for number in sorted(self.rows)]

    def require_same(self, trials: Iterable[Trial]) -> None:
        """See that trials are what they were when they were planned.

        Raises:
            ConfigError: one of them would have other values now.
        """
        for trial in trials:
            begun = self._begun.get(trial.number, trial.values)
            if begun != trial.values:
                raise ConfigError(
                    f"{self._journal.path.parent}: {trial.name} was planned with "
                    f"{describe(begun) or 'no values'}, and would have "
                    f"{describe(trial.values) or 'none'} now. Next: undo the change of the sweep "
                    "section, or give this sweep another name (name=...)"
                )

    def planned(self, *trials: Trial) -> None:
        """Write trials down, once, before they run."""
        new = [trial for trial in trials if trial.number not in self.rows]
        if not new:
            return
        self._journal.add_all(
            "trial",
            [{"trial": one.number, "values": one.values, "digest": one.digest} for one in new],
        )
        for trial in new:
            self._begun[trial.number] = trial.values
            self._note(trial, {"state": "waiting"})

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Write down how a trial ended; one that was only interrupted has not."""
        if end["state"] != "preempted":
            self._journal.add("end", trial=trial.number, values=trial.values, **end)
        self._note(trial, end)
        self.newest = self.rows[trial.number]
        self.changed()

    def count_ended(self) -> int:
        """How many of the trials that the sweep has now will never run again."""
        rows = (row for row in self.ordered() if row.trial.number < self._planner.count)
        return sum(row.state in FINAL for row in rows)

    def unfinished(self) -> list[Trial]:
        """Known trials that have to run, in order; the sweep may have had more of them before."""
        trials = [row.trial for row in self.ordered() if row.state not in FINAL]
        return [trial for trial in trials if trial.number < self._planner.count]


class PlannedSource:
    """Trials that are known beforehand.

    Args:
        record: of the sweep.
        trials: all of them; those that are final are passed over.
    """

    def __init__(self, record: Record, trials: Sequence[Trial]) -> None:
        self._record = record
        record.planned(*trials)
        final = {row.trial.number for row in record.ordered() if row.state in FINAL}
        self._waiting = deque(trial for trial in trials if trial.number not in final)

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> Trial | None:
        """The next trial that has to run."""
        return self._waiting.popleft() if self._waiting else None

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Write down how a trial ended."""
        self._record.ended(trial, end)
