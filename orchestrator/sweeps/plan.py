"""From a sweep section to trials: ordinary experiments, all valid, no two of them equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.config.places import bucket_of, folder_of
from orchestrator.config.problems import KeyPath, Place, Problem, dotted
from orchestrator.config.resolve import Difference, ResolvedExperiment, Template, diff, digest
from orchestrator.config.scalars import Json, scalar_text
from orchestrator.config.schema import SweepConfig
from orchestrator.config.shape import Shape
from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.storage.address import Place as Address
from orchestrator.storage.run_files import trial_name
from orchestrator.sweeps.conflicts import Finding, findings, missing_places
from orchestrator.sweeps.space import Values, corners, count_options, draw, grid, is_finite

#: Keys in which trials differ without being different.
_LABELS = ("name", "storage", "scratch", "tracking", "sweep", "cluster")
#: Draws made for one trial before the combinations that are left are gone through.
_ATTEMPTS = 50
#: Trials of one sweep: each is an experiment that is resolved before the first of them starts.
_MOST_TRIALS = 10_000
#: Combinations that are resolved beforehand, of a search that learns.
_SAMPLED = 64
#: Combinations that are gone through beforehand to see that there are enough.
_MOST_COUNTED = 5000


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: from 0.
        combination: trials that differ only by their seed share it.
        values: what it sets, by dotted key.
        resolved: its whole experiment; its storage is the folder, or the bucket, of the sweep.
        digest: of its effective values, whatever it is called.
        differences: its effective values against those of the experiment as it stands.
    """

    number: int
    combination: int
    values: Values
    resolved: ResolvedExperiment
    digest: str
    differences: tuple[Difference, ...]

    @property
    def name(self) -> str:
        """Of the run and its folder."""
        return trial_name(self.number)

    def text(self) -> str:
        """``key=value``, without the sections around the key where they say nothing."""
        return describe(self.values)


def describe(values: Mapping[str, Json]) -> str:
    """Values on one line."""
    return ", ".join(
        f"{key}={value if isinstance(value, dict | list) else scalar_text(value)}"
        for key, value in values.items()
    )


@dataclass(frozen=True)
class Planner:
    """Makes the trials of one sweep.

    Attributes:
        template: the experiment with its sweep section.
        folder: of the sweep, absolute; of one in a bucket its working folder.
        base: the experiment as it stands, resolved, its seed fixed.
    """

    template: Template
    folder: Path
    base: ResolvedExperiment

    @property
    def sweep(self) -> SweepConfig:
        """The section."""
        assert self.base.experiment.sweep is not None
        return self.base.experiment.sweep

    @property
    def home(self) -> str:
        """Where the sweep is kept: its folder, or its address without account and options."""
        bucket = bucket_of(self.base.experiment)
        return str(self.folder) if bucket is None else Address.of(bucket).plain

    @property
    def seed(self) -> int:
        """Of the search."""
        return self.base.experiment.seed if self.sweep.seed is None else self.sweep.seed

    @cached_property
    def count(self) -> int:
        """Trials of the whole sweep."""
        if self.sweep.search == "grid":
            return sum(1 for _ in self._grid()) * self.sweep.seeds
        return (self.sweep.trials or 1) * self.sweep.seeds

    def _grid(self) -> Iterator[Values]:
        return grid(self.sweep.space, self.base.tree)

    def trial(self, number: int, values: Values) -> Trial:
        """The trial of this number with these values.

        Raises:
            ConfigError: together they are not valid.
        """
        bucket = bucket_of(self.base.experiment)
        places: Values = {"storage": str(self.folder)}
        if bucket is not None:
            places = {"storage": bucket, "scratch": str(self.folder)}
        resolved = self._resolve({**values, "name": trial_name(number), **places})
        return Trial(
            number=number,
            combination=number // self.sweep.seeds,
            values=values,
            resolved=resolved,
            digest=digest(_without_labels(resolved.tree)),
            differences=tuple(
                diff(_without_labels(self.base.tree), _without_labels(resolved.tree))
            ),
        )

    def _resolve(self, values: Values) -> ResolvedExperiment:
        # The seed may have been drawn, which must not happen again for every trial.
        seed = {"seed": self.base.experiment.seed}
        try:
            return self.template.resolve({**seed, **values, "sweep": None})
        except ConfigError as error:
            shown = {k: v for k, v in values.items() if k not in _LABELS}
            raise ConfigError(
                f"sweep.space allows {describe(shown) or 'the experiment as it is'}, which is not "
                f"valid:\n{error}"
            ) from None

    def check(self) -> None:
        """See that every key does something, that the space is valid, and that it is large enough.

        Raises:
            ConfigError: with the place and the nearest match.
        """
        space, base = self.sweep.space, self.base.tree
        self._refuse(self._unknown_conditions())
        self._refuse_too_many()
        at_worst = [self._resolve(values).experiment for values in corners(space, base)]
        self._refuse(findings(space, base))
        self._refuse(missing_places(space, self.base.experiment, at_worst))
        if self.sweep.search == "optuna":
            # The trials of other searches are all resolved before the first of them starts.
            for number in range(min(self.sweep.trials or 0, _SAMPLED)):
                self._resolve(draw(space, base, seed=self.seed, number=number))
            self._count_combinations(self.sweep.trials or 0)

    def _refuse(self, found: Iterable[Finding]) -> None:
        problems = [self._problem(("sweep", "space", key), message) for key, message in found]
        if problems:
            raise self.template.error_of(problems)

    def _refuse_too_many(self) -> None:
        """Refuse more trials than anyone could run, before any list of them is made."""
        sweep = self.sweep
        path: KeyPath = ("sweep", "trials")
        if sweep.search != "grid":
            if self.count <= _MOST_TRIALS:
                return
            found, next_step = f"{self.count:,}", f"lower {dotted(path)}"
        else:
            most = _MOST_TRIALS // sweep.seeds
            if sum(1 for _ in itertools.islice(self._grid(), most + 1)) <= most:
                return
            counts = {key: count_options(domain) for key, domain in sweep.space.items()}
            widest = max(counts, key=lambda key: counts[key])
            path = ("sweep", "space", widest)
            found = f"{math.prod(counts.values()) * sweep.seeds:,}"
            # A key whose condition does not hold multiplies nothing.
            if any(domain.when for domain in sweep.space.values()):
                found = f"more than {_MOST_TRIALS:,}"
            fewer = "raise `step`" if sweep.space[widest].step else "leave values out"
            next_step = f"{fewer}, or draw some of them with sweep.search random"
        message = f"{found} trials; allowed are at most {_MOST_TRIALS:,}; {next_step}"
        raise self.error_at(path, message)

    def error_at(self, path: KeyPath, message: str) -> ConfigError:
        """What to raise about a value of the experiment, with its place."""
        return self.template.error_of([self._problem(path, message)])

    def _problem(self, path: KeyPath, message: str) -> Problem:
        place = self.template.document.places.get(path, Place(str(self.template.source)))
        return Problem(place, path, message)

    def _unknown_conditions(self) -> Iterator[Finding]:
        known = {dotted(path) for path in Shape.root().fields()}
        for key, domain in self.sweep.space.items():
            for condition in domain.when:
                if condition not in known:
                    hint = did_you_mean(condition, known)
                    yield Finding(
                        key, f"when names {condition}, which is no key of an experiment{hint}"
                    )

    def _count_combinations(self, wanted: int) -> None:
        """Refuse a finite space that has fewer combinations than ``wanted``."""
        rest, digests = Untried(self), set[str]()
        for looked_at in range(wanted):
            trial = rest.next(looked_at, digests)
            if trial is None and rest.finite:
                raise self.used_up(looked_at)
            if trial is None or rest.looked_at > _MOST_COUNTED:
                return
            digests.add(trial.digest)

    def planned(self) -> list[Trial]:
        """All trials of a random or grid search, which depend on nothing but the section.

        Raises:
            ConfigError: two trials would be equal, or the space has fewer than are wanted.
        """
        known: dict[str, Trial] = {}
        rest = Untried(self)
        if self.sweep.search == "grid":
            for index, values in enumerate(self._grid()):
                self._with_seeds(index, values, known, refuse=True)
        else:
            for index in range(self.sweep.trials or 1):
                self._drawn(index, known, rest)
        return sorted(known.values(), key=lambda trial: trial.number)

    def _drawn(self, index: int, known: dict[str, Trial], rest: Untried) -> None:
        for attempt in range(_ATTEMPTS):
            values = draw(
                self.sweep.space, self.base.tree, seed=self.seed, number=index, attempt=attempt
            )
            if self._with_seeds(index, values, known, refuse=False):
                return
        left = rest.next(index * self.sweep.seeds, known)
        if left is None:
            raise self.used_up(index)
        self._with_seeds(index, left.values, known, refuse=True)

    def used_up(self, found: int) -> ConfigError:
        """What to say when no further combination turns up."""
        different = "one combination" if found == 1 else f"{found} different combinations"
        message = (
            f"is {self.sweep.trials}, but sweep.space has only {different}. Next: lower "
            f"sweep.trials to {found}, or allow more values"
        )
        return self.error_at(("sweep", "trials"), message)

    def _with_seeds(
        self, index: int, values: Values, known: dict[str, Trial], *, refuse: bool
    ) -> bool:
        """Add one combination under each seed; whether it was new."""
        for offset in range(self.sweep.seeds):
            seeded = dict(values)
            if self.sweep.seeds > 1:
                seeded["seed"] = self.base.experiment.seed + offset
            trial = self.trial(index * self.sweep.seeds + offset, seeded)
            twin = known.get(trial.digest)
            if twin is not None and not refuse:
                return False
            if twin is not None:
                raise equal_trials(twin, trial)
            known[trial.digest] = trial
        return True


def check_sweep(template: Template, base: ResolvedExperiment) -> None:
    """See, without running anything, that a sweep could start; nothing for a single run.

    Args:
        template: the experiment.
        base: it, resolved.

    Raises:
        ConfigError: some trial would not be valid, or would do nothing.
    """
    if base.experiment.sweep is None:
        return
    planner = Planner(template, folder_of(base.experiment), base)
    planner.check()
    if planner.sweep.search != "optuna":
        planner.planned()


class Untried:
    """The combinations of a finite space that no trial has had, in the order of a grid.

    Args:
        planner: of the sweep.

    Attributes:
        finite: whether the space can be gone through at all.
        looked_at: combinations gone through.
    """

    def __init__(self, planner: Planner) -> None:
        self.finite = is_finite(planner.sweep.space)
        self.looked_at = 0
        self._planner = planner
        self._left = grid(planner.sweep.space, planner.base.tree) if self.finite else iter(())

    def next(self, number: int, known: Container[str]) -> Trial | None:
        """A trial that is equal to none of those known, which only ever become more.

        Args:
            number: of the trial.
            known: digests of the others.

        Returns:
            None when nothing is left, or the space is not finite.
        """
        for values in self._left:
            self.looked_at += 1
            if self._planner.sweep.seeds > 1:
                values = {**values, "seed": self._planner.base.experiment.seed}
            trial = self._planner.trial(number, values)
            if trial.digest not in known:
                return trial
        return None


def equal_trials(one: Trial, other: Trial) -> ConfigError:
    """The refusal of two trials with equal effective values."""
    return ConfigError(
        f"sweep.space: {one.name} ({one.text()}) and {other.name} ({other.text()}) have equal "
        "effective configurations, so the second would teach nothing. Next: remove the value that "
        "changes nothing"
    )


def difference_rows(trial: Trial) -> list[dict[str, Json]]:
    """The differences as JSON, absent values as null."""
    return [
        {
            "key": found.path,
            "base": _json(found.left),
            "trial": _json(found.right),
        }
        for found in trial.differences
    ]


def _json(value: object) -> Json:
    return value if isinstance(value, bool | int | float | str) else None


def _without_labels(tree: Mapping[str, Json]) -> dict[str, Json]:
    return {key: value for key, value in tree.items() if key not in _LABELS}
