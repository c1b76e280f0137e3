"""Trials that depend on how earlier ones went: Optuna's TPE.

The study lives in memory. A restart asks a new one for the same trials and tells it the same
results, in the order of the journal; seeded alike, it arrives at the same state, which is checked
against the values that the journal holds.

TPE draws with replacement, and the better it knows a finite space the more often it draws what was
tried. Such a draw gets the score that is known already. After a few of them the next combination
that nothing has tried is put into the study's queue.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from orchestrator.config.scalars import Json
from orchestrator.config.schema import PARAMETERS, Domain
from orchestrator.errors import ConfigError, StorageError
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.plan import Planner, Trial, Untried
from orchestrator.sweeps.report import Row
from orchestrator.sweeps.sources import Record
from orchestrator.sweeps.space import Values, assign, count_options, index_of, inside, option_at

#: Draws made for one trial before one is taken that nothing has tried.
_ATTEMPTS = 10


class LearningSource:
    """Asks Optuna for trials and tells it how they went.

    Args:
        planner: of the sweep.
        journal: of the sweep, whose trials and ends are told again.
        record: of the sweep.

    Raises:
        ConfigError: Optuna is not installed.
        StorageError: Optuna answers otherwise than it did when the journal was written.
    """

    def __init__(self, planner: Planner, journal: Journal, record: Record) -> None:
        self._planner = planner
        self._record = record
        self._study = _study(planner)
        self._untried = Untried(planner)
        #: Optuna's trials, by the number of ours.
        self._asked: dict[int, Any] = {}
        #: Scores of trials that have ended, None for a failed one.
        self._told: dict[int, list[float] | None] = {}
        self._numbers: dict[str, int] = {}
        for entry in journal.entries:
            content = entry.content
            if entry.kind == "trial":
                self._ask_again(content)
            elif entry.kind == "end":
                self._tell(self._row_of(content))
        self._unfinished = record.unfinished()

    def __len__(self) -> int:
        known = len(self._record.rows)
        return len(self._unfinished) + max(0, self._planner.count - known)

    def next(self) -> Trial | None:
        """A trial that was interrupted, or a new one."""
        if self._unfinished:
            return self._unfinished.pop(0)
        number = len(self._record.rows)
        if number >= self._planner.count:
            return None
        trial = self._ask(number)
        self._record.planned(trial)
        return trial

    def ended(self, trial: Trial, end: dict[str, Any]) -> None:
        """Write down how a trial ended, and let Optuna know."""
        self._record.ended(trial, end)
        if end["state"] != "preempted":
            self._tell(self._record.rows[trial.number])

    def _ask(self, number: int) -> Trial:
        """The next combination that is not equal to an earlier one."""
        for _ in range(_ATTEMPTS):
            asked = self._study.ask()
            trial = self._planner.trial(number, self._values(asked))
            if trial.digest not in self._numbers:
                return self._taken(trial, asked)
            # Not worth a second run: what is known of it is told again.
            self._tell_study(asked, self._told.get(self._numbers[trial.digest]))
        left = self._untried.next(number, self._numbers)
        if left is None and self._untried.finite:
            raise self._planner.used_up(number)
        if left is None:
            raise ConfigError(
                f"{self._planner.folder}: Optuna has suggested combinations that were tried "
                f"{_ATTEMPTS} times in a row. Next: allow more values in sweep.space, or lower "
                f"sweep.trials to {number}"
            )
        self._study.enqueue_trial(self._parameters(left.values))
        asked = self._study.ask()
        trial = self._planner.trial(number, self._values(asked))
        return self._taken(trial, asked)

    def _taken(self, trial: Trial, asked: Any) -> Trial:
        self._numbers[trial.digest] = trial.number
        self._asked[trial.number] = asked
        return trial

    def _ask_again(self, entry: Mapping[str, Any]) -> None:
        trial = self._ask(entry["trial"])
        if trial.values != entry["values"]:
            raise StorageError(
                f"{self._planner.folder}: Optuna suggests {trial.text()} for {trial.name}, which "
                f"ran with {entry['values']}. Next: go on with the version of Optuna that the "
                "sweep was begun with, or give the sweep another name"
            )

    def _row_of(self, entry: Mapping[str, Any]) -> Row:
        row = self._record.rows[entry["trial"]]
        return Row(row.trial, entry["state"], entry.get("result"), None, row.parameters)

    def _tell(self, row: Row) -> None:
        sweep = self._planner.sweep
        number = row.trial.number
        values = [row.value(name) for name in (sweep.metric, *sweep.objectives)]
        known = [value for value in values if value is not None]
        failed = row.state == "failed" or len(known) < len(values)
        scores = None if failed else known
        if number not in self._told:
            self._tell_study(self._asked[number], scores)
        elif self._told[number] is None and scores is not None:
            self._tell_late(self._asked[number], scores)
        self._told[number] = scores

    def _tell_late(self, asked: Any, values: list[float]) -> None:
        """Of a trial that had failed; Optuna takes nothing back, so it gets another one."""
        from optuna.trial import create_trial

        failed = self._study.trials[asked.number]
        self._study.add_trial(
            create_trial(params=failed.params, distributions=failed.distributions, values=values)
        )

    def _tell_study(self, asked: Any, values: list[float] | None) -> None:
        if values is not None:
            self._study.tell(asked, values)
            return
        from optuna.trial import TrialState

        self._study.tell(asked, state=TrialState.FAIL)

    def _parameters(self, values: Values) -> dict[str, Any]:
        """Values as Optuna holds them: see :meth:`_values`."""
        found: dict[str, Any] = {}
        for key, value in values.items():
            domain = self._planner.sweep.space[key]
            found[key] = value
            if domain.choice is not None:
                found[key] = index_of(domain, value)
            elif domain.uniform is not None and domain.step is not None:
                found[key] = domain.uniform[0] + index_of(domain, value) * domain.step
        return found

    def _values(self, trial: Any) -> Values:
        """Optuna's view of the space: asked key by key, so that conditions hold."""

        def choose(key: str, domain: Domain) -> Json:
            if domain.choice is not None:
                # By index, because Optuna keeps plain values only.
                indices = list(range(count_options(domain)))
                return option_at(domain, int(trial.suggest_categorical(key, indices)))
            if domain.integer is not None:
                low, high = domain.integer
                return int(trial.suggest_int(key, low, high, step=int(domain.step or 1)))
            if domain.logint is not None:
                return int(trial.suggest_int(key, *domain.logint, log=True))
            if domain.loguniform is not None:
                return inside(domain, trial.suggest_float(key, *domain.loguniform, log=True))
            assert domain.uniform is not None
            low_end, high_end = domain.uniform
            return inside(domain, trial.suggest_float(key, low_end, high_end, step=domain.step))

        with warnings.catch_warnings():
            # Optuna takes a range that is no whole number of steps, and says so every time.
            warnings.simplefilter("ignore")
            return assign(self._planner.sweep.space, self._planner.base.tree, choose)


def _study(planner: Planner) -> Any:
    """A study of its own, in memory."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sweep.search is optuna, which is not installed. Next: pip install optuna, or use "
            "sweep.search random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = (planner.sweep.metric, *planner.sweep.objectives)
    return optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=planner.seed),
        directions=["minimize" if name == PARAMETERS else "maximize" for name in names],
    )
