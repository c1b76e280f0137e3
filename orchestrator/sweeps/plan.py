"""From a sweep section to trials: ordinary experiments, all valid, no two of them equal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from orchestrator.config.problems import Place, Problem, dotted, error_of
from orchestrator.config.resolve import Difference, ResolvedExperiment, Template, diff, digest
from orchestrator.config.scalars import Json, scalar_text
from orchestrator.config.schema import SweepConfig
from orchestrator.config.shape import Shape
from orchestrator.errors import ConfigError, nearest
from orchestrator.storage.run_files import trial_name
from orchestrator.sweeps.space import Values, corners, draw, grid

#: Keys in which trials differ without being different.
_LABELS = ("name", "storage", "scratch", "tracking", "sweep", "cluster")
#: Draws made for one trial before a space is taken to be used up.
_ATTEMPTS = 200


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: from 0.
        combination: trials that differ only by their seed share it.
        values: what it sets, by dotted key.
        resolved: its whole experiment; its storage is the folder of the sweep.
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
        folder: of the sweep, absolute.
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
        resolved = self._resolve(
            {**values, "name": trial_name(number), "storage": str(self.folder)}
        )
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
        """See that every key is known and that the corners of the space are valid.

        Raises:
            ConfigError: with the place and the nearest match.
        """
        self._check_conditions()
        for values in corners(self.sweep.space, self.base.tree):
            self._resolve(values)

    def _check_conditions(self) -> None:
        known = {dotted(path) for path in Shape.root().fields()}
        problems = []
        for key, domain in self.sweep.space.items():
            path = ("sweep", "space", key)
            place = self.template.document.places.get(path, Place(str(self.template.source)))
            for condition in domain.when:
                if condition not in known:
                    guess = nearest(condition, known)
                    hint = f"; did you mean '{guess}'?" if guess else ""
                    message = f"when names {condition}, which is no key of an experiment{hint}"
                    problems.append(Problem(place, path, message))
        if problems:
            raise error_of(problems, str(self.template.source))

    def planned(self) -> list[Trial]:
        """All trials of a random or grid search, which depend on nothing but the section.

        Raises:
            ConfigError: two trials would be equal, or the space has fewer than are wanted.
        """
        known: dict[str, Trial] = {}
        if self.sweep.search == "grid":
            for index, values in enumerate(self._grid()):
                self._with_seeds(index, values, known, refuse=True)
        else:
            for index in range(self.sweep.trials or 1):
                self._drawn(index, known)
        return sorted(known.values(), key=lambda trial: trial.number)

    def _drawn(self, index: int, known: dict[str, Trial]) -> None:
        for attempt in range(_ATTEMPTS):
            values = draw(
                self.sweep.space, self.base.tree, seed=self.seed, number=index, attempt=attempt
            )
            if self._with_seeds(index, values, known, refuse=False):
                return
        raise self.used_up(index)

    def used_up(self, found: int) -> ConfigError:
        """What to say when no further combination turns up."""
        return ConfigError(
            f"sweep.trials is {self.sweep.trials}, but only {found} different combinations turned "
            f"up in sweep.space after {_ATTEMPTS} draws. Next: lower sweep.trials to {found}, or "
            "allow more values"
        )

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
