"""Runs beside each other: what was set differently, what came of it, and whether it is luck.

Runs that differ in nothing but their seed, or in what decides no result, are one group and are
spoken of by mean and range. Groups are compared with the group of the baseline; where there is one
group alone, its runs are compared with the baseline.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.config.resolve import ABSENT, MaybeScalar, digest, flatten
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.split import read_split
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import METRICS
from orchestrator.evaluation.results import read_results
from orchestrator.evaluation.significance import LEVEL, RESAMPLES, Significance, Tally, compare
from orchestrator.evaluation.stored import require_classes_of, require_logged_ap
from orchestrator.runs.compare.run_folder import RunFolder

#: Sections that differ between any two runs and say nothing about them.
_NOT_SHOWN = ("name", "storage", "scratch", "tracking", "sweep")


class Spread(NamedTuple):
    """A number over the runs of a group."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        return cls(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True)
class Group:
    """Runs of one experiment with different seeds.

    Attributes:
        name: of its first run, and how many more there are.
        runs: at least one.
    """

    name: str
    runs: tuple[RunFolder, ...]

    @property
    def by_seed(self) -> tuple[RunFolder, ...]:
        """Its runs, one for each seed: a run that was repeated is no second opinion."""
        return tuple({run.seed: run for run in reversed(self.runs)}.values())[::-1]

    def metric(self, name: str) -> Spread | None:
        """One of the COCO numbers; None before anything was evaluated."""
        return Spread.of([run.metrics[name] for run in self.by_seed if name in run.metrics])

    def class_ap(self, name: str) -> Spread | None:
        """AP of a class; None where it has no boxes or nothing was evaluated."""
        values = [run.classes.get(name, -1.0) for run in self.by_seed]
        return Spread.of([value for value in values if value >= 0])


@dataclass(frozen=True)
class Contrast:
    """The second of two sides against the first.

    Attributes:
        before, after: names of two groups, or of two runs of one.
        significance: None where it could not be told.
        note: why not; what else there is to know.
    """

    before: str
    after: str
    significance: Significance | None
    note: str = ""

    @property
    def verdict(self) -> str:
        """One line."""
        told = self.note if self.significance is None else self.significance.verdict
        return f"{self.after} against {self.before}: {told}"


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare_runs`.

    Attributes:
        runs: in the order they were named.
        groups: the baseline's first.
        settings: by key path, the value of every run where not all have the same.
        contrasts: of the others against the baseline.
    """

    runs: tuple[RunFolder, ...]
    groups: tuple[Group, ...]
    settings: dict[str, tuple[MaybeScalar, ...]]
    contrasts: tuple[Contrast, ...]

    @property
    def class_names(self) -> list[str]:
        """Classes that any run was scored on, in the order of the first."""
        return list(dict.fromkeys(name for run in self.runs for name in run.classes))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "runs": [
                {
                    "name": run.name,
                    "seed": run.seed,
                    "state": run.state,
                    "steps": run.steps,
                    "metrics": run.metrics,
                    "classes": run.classes,
                    "weights_sha256": run.result.get("weights_sha256"),
                    "settings": {
                        path: _plain(values[number]) for path, values in self.settings.items()
                    },
                }
                for number, run in enumerate(self.runs)
            ],
            "groups": [
                {
                    "name": group.name,
                    "runs": [run.name for run in group.runs],
                    "seeds": [run.seed for run in group.by_seed],
                    "metrics": {
                        name: None if spread is None else spread._asdict()
                        for name, spread in ((name, group.metric(name)) for name in METRICS)
                    },
                }
                for group in self.groups
            ],
            "contrasts": [
                {
                    "before": one.before,
                    "after": one.after,
                    "verdict": one.verdict,
                    "note": one.note,
                    "significance": (
                        None if one.significance is None else dataclasses.asdict(one.significance)
                    ),
                }
                for one in self.contrasts
            ],
        }


def _plain(value: MaybeScalar) -> Any:
    return None if value is ABSENT else value


def compare_runs(
    runs: Sequence[RunFolder],
    *,
    baseline: RunFolder | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Put runs beside each other.

    Args:
        runs: at least one.
        baseline: what the others are compared with; None for the first.
        level: of confidence.
        resamples: see :func:`orchestrator.evaluation.significance.compare`.
    """
    first = runs[0] if baseline is None else baseline
    groups = _groups([first, *(run for run in runs if run is not first)])
    judge = _Judge(level, resamples)
    if len(groups) > 1:
        sides = [Group(group.name, group.by_seed) for group in groups]
        contrasts = tuple(judge.contrast(sides[0], side) for side in sides[1:])
    else:
        # A run that was repeated with its seed stays: that it is the same is worth saying.
        sides = [Group(run.name, (run,)) for run in groups[0].runs]
        contrasts = tuple(judge.contrast(sides[0], side, groups[0]) for side in sides[1:])
    return Comparison(tuple(runs), tuple(groups), _settings(runs), contrasts)


def _groups(runs: Sequence[RunFolder]) -> list[Group]:
    found: dict[tuple[str, ...], list[RunFolder]] = {}
    for run in runs:
        found.setdefault(run.experiment_key, []).append(run)
    return [
        Group(f"{one.name} and {len(others)} more" if others else one.name, (one, *others))
        for one, *others in found.values()
    ]


def _settings(runs: Sequence[RunFolder]) -> dict[str, tuple[MaybeScalar, ...]]:
    """Values of the keys in which runs differ, in the order of the experiment file."""
    flat: list[dict[str, MaybeScalar]] = []
    for run in runs:
        shown = {
            path: value
            for path, value in flatten(run.resolved.tree).items()
            if path.partition(".")[0] not in _NOT_SHOWN
        }
        flat.append({**shown, **run.digests})
    rows = {
        path: tuple(one.get(path, ABSENT) for one in flat)
        for path in dict.fromkeys(path for one in flat for path in one)
    }
    # True == 1 == 1.0 to Python.
    return {
        path: values
        for path, values in rows.items()
        if len({(type(value), value) for value in values}) > 1 and not _is_switched_off(path, rows)
    }


def _is_switched_off(path: str, rows: Mapping[str, tuple[MaybeScalar, ...]]) -> bool:
    """Whether a row says no more than its section's rows: null in the runs that lack these."""
    inside = any(other.startswith(f"{path}.") for other in rows)
    return inside and set(rows[path]) <= {None, ABSENT}


def value_text(value: MaybeScalar) -> str:
    """A value as an experiment file has it; a dash for a key that is not there."""
    if value is ABSENT:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


class _Judge:
    """Compares detections, reading every data set and matching every run once."""

    def __init__(self, level: float, resamples: int) -> None:
        self._level = level
        self._resamples = resamples
        self._datasets: dict[str, Dataset] = {}
        self._tallies: dict[Path, Tally] = {}

    def contrast(self, before: Group, after: Group, experiment: Group | None = None) -> Contrast:
        """Compare two sides, or say why that cannot be done.

        Args:
            before: one side.
            after: the other.
            experiment: whose runs both sides are, if they are of one.
        """
        try:
            found = self._judged(before.runs, after.runs, experiment)
        except DataError as error:
            return Contrast(before.name, after.name, None, f"not tested: {error}")
        runs = [*before.runs, *after.runs]
        weights = {run.result.get("weights_sha256") for run in runs}
        note = ""
        if len(weights) == 1 and None not in weights:
            note = "The weights are the same, to the bit."
        elif experiment is not None:
            note = "Both are runs of one experiment and differ by their seed alone."
        return Contrast(before.name, after.name, found, note)

    def _judged(
        self, before: Sequence[RunFolder], after: Sequence[RunFolder], experiment: Group | None
    ) -> Significance:
        seeds = () if experiment is None else experiment.by_seed
        runs = [*before, *after, *seeds]
        for run in runs:
            if not run.results_file.is_file():
                raise DataError(f"{run.name} has no detections yet, {run.results_file.name}")
        dataset = self._dataset(runs[0])
        for run in runs:
            if self._dataset(run).digest != dataset.digest:
                raise DataError(f"{run.name} was validated on other images than {runs[0].name}")
        tallies = {run.path: self._tally(run, dataset) for run in runs}
        return compare(
            dataset,
            [tallies[run.path] for run in before],
            [tallies[run.path] for run in after],
            experiments=[[tallies[run.path] for run in seeds]] if seeds else None,
            level=self._level,
            resamples=self._resamples,
        )

    def _dataset(self, run: RunFolder) -> Dataset:
        data = run.resolved.experiment.data
        key = digest(_section(run.resolved.tree, "data"))
        if key not in self._datasets:
            self._datasets[key] = read_split(data, data.val).dataset
        require_classes_of(run.path, self._datasets[key])
        return self._datasets[key]

    def _tally(self, run: RunFolder, dataset: Dataset) -> Tally:
        if run.path not in self._tallies:
            tally = Tally.of(dataset, read_results(run.results_file, dataset))
            require_logged_ap(run.name, tally.ap(), run.metrics.get("AP"))
            self._tallies[run.path] = tally
        return self._tallies[run.path]


def _section(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(tree[name])
