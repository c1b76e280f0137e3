"""A run folder as a comparison reads it: what was run, what came of it, and its curves."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.errors import ConfigError, StorageError, did_you_mean, printable
from orchestrator.evaluation.coco import METRICS
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, experiment_trouble, recorded_identity
from orchestrator.runs.overview import is_outdated, newest_commit, run_troubles
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import (
    DETECTIONS,
    EVENTS,
    RESOLVED,
    RESULT,
    RUN_OR_SWEEP,
    require_there,
)
from orchestrator.tracking.events import read_events

_PER_CLASS = "val/AP/"

#: Values of a curve by what they are drawn over.
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class RunFolder:
    """A run, finished or not.

    Attributes:
        path: its folder.
        name: as it is called in tables, unlike any other: the folder's name, with those of as many
            parents as it takes. What is no text in it stands as escapes.
        resolved: the experiment, every value in place.
        result: what ``result.json`` says; empty while there is none.
        identity: what decided its result besides; None without a record.
        troubles: what of the folder is missing or damaged, and what is therefore not known.
    """

    path: Path
    name: str
    resolved: ResolvedExperiment
    result: dict[str, Any]
    identity: Identity | None
    troubles: tuple[str, ...] = ()

    @cached_property
    def experiment_key(self) -> tuple[str, ...]:
        """Equal for runs that differ in their seed at most, and in what decides no result."""
        tree = {**self.resolved.tree, "seed": 0}
        if self.identity is None:
            return (config_digest(tree),)
        settings = config_digest(tree, initial=self.identity.initial)
        return settings, self.identity.data_digest, str(self.identity.numerics)

    @property
    def digests(self) -> dict[str, str]:
        """What the experiment file does not hold: digests, shortened, and the numerics version."""
        if self.identity is None:
            return {}
        found = {"data (sha256)": self.identity.data_digest[:12]}
        if self.identity.initial is not None:
            found["initial weights (sha256)"] = self.identity.initial[:12]
        return {**found, "numerics version": str(self.identity.numerics)}

    @property
    def seed(self) -> int:
        """That everything random came from."""
        return self.resolved.experiment.seed

    @property
    def state(self) -> str:
        """``done``, ``preempted``, or ``unfinished`` for a run that never came to its end."""
        return str(self.result.get("state", "unfinished"))

    @property
    def steps(self) -> int:
        """Optimizer steps that were logged or committed."""
        last = max((step for step, _ in self._steps.get("train/loss", ())), default=0.0)
        return int(self.result.get("steps", last))

    @property
    def results_file(self) -> Path:
        """Detections of the last evaluation."""
        return self.path / DETECTIONS

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The COCO numbers of the last evaluation; none before the first."""
        return {name: value for name in METRICS if (value := self._last(f"val/{name}")) is not None}

    @cached_property
    def classes(self) -> dict[str, float]:
        """AP of every class at the last evaluation; -1 for one without boxes."""
        names = [key.removeprefix(_PER_CLASS) for key in self._steps if key.startswith(_PER_CLASS)]
        found = {name: self._last(_PER_CLASS + name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def curve(self, metric: str) -> Curve:
        """Values of a metric over epochs; those that are not finite left out."""
        steps_per_epoch = self._steps_per_epoch
        return [(step / steps_per_epoch, value) for step, value in self._steps.get(metric, ())]

    def epoch_means(self, metric: str) -> Curve:
        """Mean of a metric in every epoch, at the epoch's end."""
        epochs: dict[int, list[float]] = {}
        for epoch, value in self.curve(metric):
            # The last step of an epoch has its number, without a fraction.
            epochs.setdefault(math.ceil(epoch - 1e-9), []).append(value)
        return [(float(epoch), sum(values) / len(values)) for epoch, values in epochs.items()]

    def _last(self, metric: str) -> float | None:
        points = self._steps.get(metric)
        return points[-1][1] if points else None

    @cached_property
    def _steps_per_epoch(self) -> float:
        epochs = self._steps.get("train/epoch")
        if not epochs or not epochs[-1][1]:
            return 1.0
        step, epoch = epochs[-1]
        return step / epoch

    @cached_property
    def _steps(self) -> dict[str, Curve]:
        """Finite values of every metric in the event log, by step."""
        found: dict[str, Curve] = {}
        for event in read_events(self.path / EVENTS):
            for key, value in event.values.items():
                if math.isfinite(value):
                    found.setdefault(key, []).append((float(event.step), value))
        return found


def config_file(run_dir: Path) -> Path:
    """The resolved experiment in a run folder."""
    return run_dir / RESOLVED


def read_runs(paths: Iterable[Path], overrides: Sequence[str] = ()) -> list[RunFolder]:
    """The runs that folders hold: each a run folder, or the folder of a sweep with runs in it.

    Args:
        paths: folders; one that is named twice counts once.
        overrides: ``key.path=value`` applied to every experiment, such as where its data lies now.

    Raises:
        StorageError: a folder that is not there or holds no run, or a damaged ``result.json``.
        ConfigError: the experiment of a run cannot be read.
    """
    folders = list(dict.fromkeys(found.resolve() for path in paths for found in _folders(path)))
    names = _short_names(folders)
    return [
        RunFolder(
            path=folder,
            name=names[folder],
            resolved=load_experiment(config_file(folder), overrides),
            result=_read_result(folder),
            identity=recorded_identity(folder),
            troubles=tuple(filter(None, (experiment_trouble(folder), *run_troubles(folder)))),
        )
        for folder in folders
    ]


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Of each folder as many of the last parts of its path as no other of them ends in."""
    # Names that are no text can be drawn on no chart.
    shown = {folder: tuple(map(printable, folder.parts)) for folder in folders}
    if len(set(shown.values())) < len(folders):
        # One has by its letters what is an escape of another.
        shown = {
            folder: tuple(printable(part.replace("\\", "\\\\")) for part in folder.parts)
            for folder in folders
        }
    return {folder: _shortest(parts, shown.values()) for folder, parts in shown.items()}


def _shortest(parts: tuple[str, ...], others: Collection[tuple[str, ...]]) -> str:
    for length in range(1, len(parts)):
        if sum(one[-length:] == parts[-length:] for one in others) == 1:
            return "/".join(parts[-length:])
    return "/".join(parts).removeprefix("/")


def run_named(runs: Sequence[RunFolder], name: str) -> RunFolder:
    """The run of a name.

    Raises:
        ConfigError: there is none.
    """
    for run in runs:
        if run.name in (name, printable(name)):
            return run
    names = [run.name for run in runs]
    hint = did_you_mean(name, names)
    raise ConfigError(f"no run '{name}' among {', '.join(names)}{hint}")


def _folders(path: Path) -> list[Path]:
    require_there(path, what=RUN_OR_SWEEP)
    if not path.is_dir():
        raise StorageError(f"{path}: is a file\nname {RUN_OR_SWEEP}")
    if config_file(path).is_file():
        return [path]
    inside = sorted(entry for entry in path.iterdir() if config_file(entry).is_file())
    if not inside:
        raise StorageError(
            f"{path}: neither a run folder (it has no config/resolved.yaml) nor a sweep (none of "
            "the folders in it has one). Next: name the folder that training printed as `run "
            "folder`"
        )
    return inside


def _read_result(folder: Path) -> dict[str, Any]:
    path, newest = folder / RESULT, newest_commit(folder)
    try:
        tree = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{path}: cannot be read ({error}). Next: run the experiment again, which writes it "
            "anew"
        ) from error
    if not isinstance(tree, dict) or not isinstance(tree.get("steps", 0), int):
        raise StorageError(
            f"{path}: holds something else than a result. Next: run the experiment again, which "
            "writes it anew"
        )
    if newest is not None and is_outdated(tree, newest.step):
        return {}  # One of the troubles.
    return tree
