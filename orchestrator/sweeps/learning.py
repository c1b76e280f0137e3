"""Trials that depend on how earlier ones went: Optuna's TPE, through Ray Tune's searcher.

The study lives in memory. A restart asks a new one for the same trials and tells it the same
results, in the order of the journal; seeded alike, it arrives at the same state, which is checked
against the values that the journal holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.config.scalars import Json
from orchestrator.config.schema import PARAMETERS, Domain
from orchestrator.errors import ConfigError, StorageError
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.plan import Planner, Trial
from orchestrator.sweeps.report import Row
from orchestrator.sweeps.sources import Record
from orchestrator.sweeps.space import Values, assign, inside, options

#: Questions asked for one trial before the space is taken to be used up.
_ATTEMPTS = 50


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
        self._search = _search(planner, self._space)
        self._values: Values = {}
        self._asked: dict[int, str] = {}
        self._told: set[int] = set()
        self._digests: set[str] = set()
        for entry in journal.entries:
            content = entry.content
            if entry.kind == "trial":
                self._ask_again(content)
            elif entry.kind == "end" and content["trial"] not in self._told:
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
        if end["state"] != "preempted" and trial.number not in self._told:
            self._tell(self._record.rows[trial.number])

    def _ask(self, number: int) -> Trial:
        """The next combination that is not equal to an earlier one."""
        for attempt in range(_ATTEMPTS):
            name = f"{number}.{attempt}"
            if self._search.suggest(name) is None:
                continue
            trial = self._planner.trial(number, self._values)
            if trial.digest not in self._digests:
                self._digests.add(trial.digest)
                self._asked[number] = name
                return trial
            # Not worth a second run; Optuna is to look elsewhere.
            self._search.on_trial_complete(name, error=True)
        raise self._planner.used_up(number)

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
        self._told.add(number)
        values = {name: row.value(name) for name in (sweep.metric, *sweep.objectives)}
        failed = row.state == "failed" or any(value is None for value in values.values())
        self._search.on_trial_complete(
            self._asked[number], None if failed else values, error=failed
        )

    def _space(self, trial: Any) -> None:
        """Optuna's view of the space: asked key by key, so that conditions hold."""

        def choose(key: str, domain: Domain) -> Json:
            if domain.choice is not None:
                # By index, because Optuna keeps plain values only.
                choices = options(domain)
                return choices[int(trial.suggest_categorical(key, list(range(len(choices)))))]
            if domain.integer is not None:
                low, high = domain.integer
                return int(trial.suggest_int(key, low, high, step=int(domain.step or 1)))
            if domain.logint is not None:
                return int(trial.suggest_int(key, *domain.logint, log=True))
            if domain.loguniform is not None:
                return inside(domain, trial.suggest_float(key, *domain.loguniform, log=True))
            assert domain.uniform is not None
            low_end, high_end = domain.uniform
            value = trial.suggest_float(key, low_end, high_end, step=domain.step)
            return inside(domain, value)

        self._values = assign(self._planner.sweep.space, self._planner.base.tree, choose)


def _search(planner: Planner, space: Any) -> Any:
    """Tune's searcher over a study of its own."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "sweep.search is optuna, which is not installed. Next: pip install optuna, or use "
            "sweep.search random"
        ) from error
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sweep = planner.sweep
    names = [sweep.metric, *sweep.objectives]
    modes = ["min" if name == PARAMETERS else "max" for name in names]
    single = len(names) == 1
    return OptunaSearch(
        space=space,
        metric=names[0] if single else names,
        mode=modes[0] if single else modes,
        sampler=optuna.samplers.TPESampler(seed=planner.seed),
    )
