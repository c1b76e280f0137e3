"""From a resolved experiment to a training job, before any hardware is claimed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectors.base import Detector
from detectors.skeleton import skeleton
from orchestrator.checkpoints.codec import STATE_NAME, optimizer_from_flat
from orchestrator.checkpoints.initial_weights import InitialWeights, find_initial
from orchestrator.checkpoints.manifest import checked_commits, read_verified
from orchestrator.checkpoints.other_run import find_state, load_state
from orchestrator.checkpoints.published import expected_path
from orchestrator.checkpoints.source import is_run
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.config.schema import Experiment, TrainConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.findings import Finding
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.split import read_splits, read_training
from orchestrator.data.stream.assemble import BatchPlan, training_samples
from orchestrator.data.stream.sampling import visit_factors
from orchestrator.data.stream.schedule import Schedule
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import recorded_beginning, recorded_initial
from orchestrator.storage.bucket import commit_storage
from orchestrator.storage.local import Storage
from orchestrator.storage.sealed import UnusableError
from orchestrator.training.freeze import adapt
from orchestrator.training.job import TrainingJob
from orchestrator.training.normalization import single_values
from orchestrator.training.optim import build_optimizer
from orchestrator.training.schedules import require_warmup_ends
from orchestrator.training.shards import Shards, shards_of
from orchestrator.training.state import differing


@dataclass(frozen=True)
class Plan:
    """A job and the batches it trains on.

    Attributes:
        job: what every worker gets.
        batches: what is in which batch; goes to the object store, not to the workers.
        splits: the data sets by name, as they were read.
        findings: what the readers noticed and dealt with, by split.
        manifests: what was read instead of annotations, by split.
    """

    job: TrainingJob
    batches: BatchPlan
    splits: dict[str, Dataset]
    findings: dict[str, tuple[Finding, ...]]
    manifests: dict[str, Path]


def make_plan(
    resolved: ResolvedExperiment,
    run_dir: Path,
    *,
    threads: int | None = None,
    bucket: str | None = None,
) -> Plan:
    """Read and check the data set and lay out the run.

    Args:
        resolved: the experiment.
        run_dir: where the run lives; nothing is written here.
        threads: CPU threads of a worker; see :class:`TrainingJob`.
        bucket: URI of the run, if it is kept in a bucket; see :class:`TrainingJob`.

    Raises:
        DataError: the data set is missing, malformed or too small, or the initial weights are
            missing.
        ConfigError: values that do not fit the data set.
    """
    experiment = resolved.experiment
    train, val = read_splits(experiment.data)
    _require_weights_of_classes(experiment, train.dataset.label_map)
    # Without memory for its tensors: only to see that all that is said about it is true.
    model = _skeleton(experiment, len(train.dataset.label_map))
    adapt(model, experiment.train)
    build_optimizer(model, experiment.train.optimizer)
    commits = commit_storage(run_dir, bucket)
    cluster = experiment.cluster
    shards = shards_of(
        experiment.train, cluster.workers, _recorded_shards(commits), least=cluster.min_workers
    )
    _require_variance(model, experiment, shards)
    batches = BatchPlan.from_config(
        experiment.data,
        train.dataset,
        val.dataset,
        seed=experiment.seed,
        epochs=experiment.train.epochs,
        batch_size=experiment.train.batch_size,
        # Evaluation batches, too, are then of one shape whatever the number of workers.
        workers=shards.count or experiment.cluster.workers,
        input_size=model.input_size,
        canvases=model.train_canvases,
    )
    require_warmup_ends(experiment.train, steps_per_epoch=batches.schedule.steps_per_epoch)
    if val.dataset.crowd.all():
        none = "no boxes"
        if len(val.dataset.labels):
            none = "no boxes but crowds, or ones marked difficult or ignored"
        raise DataError(
            f"data.val: {experiment.data.val.shards or experiment.data.val.annotations} has "
            f"{none}, so there is nothing to score against. Next: point data.val at images with "
            "annotations of objects that count"
        )
    if experiment.train.early_stopping is not None:
        _require_defined(experiment.train.early_stopping.metric, val.dataset)
    initial = _initial(experiment.train, run_dir, commits)
    digest = hashlib.sha256(f"{train.dataset.digest} {val.dataset.digest}".encode()).hexdigest()
    job = TrainingJob(
        experiment=experiment,
        run_dir=str(run_dir),
        label_map=train.dataset.label_map,
        schedule=batches.schedule,
        val=val.dataset,
        val_tiling=batches.val.tiling,
        config_digest=config_digest(
            resolved.tree, initial=None if initial is None else initial.sha256
        ),
        data_digest=digest,
        threads=threads,
        shards=shards,
        initial=initial,
        bucket=bucket,
    )
    read = {"train": train, "val": val}
    return Plan(
        job=job,
        batches=batches,
        splits={split: one.dataset for split, one in read.items()},
        findings={split: one.findings for split, one in read.items()},
        manifests={split: one.manifest for split, one in read.items() if one.manifest is not None},
    )


def _recorded_shards(commits: Storage) -> dict[str, Any] | None:
    """What the newest commit says of the shards it was made by; None where none says anything."""
    for commit in checked_commits(commits):
        with suppress(UnusableError, OSError, ValueError):
            record = commit.manifest.files[STATE_NAME]
            state = json.loads(read_verified(commits, commit.key, STATE_NAME, record))
            found: dict[str, Any] | None = state["scalars"].get("virtual_shards")
            return found
    return None


def _skeleton(experiment: Experiment, num_classes: int) -> Detector:
    try:
        return skeleton(experiment.detector, num_classes=num_classes)
    except ValueError as error:
        if experiment.detector.class_weights is None:
            raise
        raise ConfigError(f"{error}. Next: leave detector.class_weights out") from error


def _require_weights_of_classes(experiment: Experiment, label_map: LabelMap) -> None:
    weights = experiment.detector.class_weights
    if weights is not None and len(weights) != len(label_map):
        raise ConfigError(
            f"detector.class_weights has {len(weights)} values, but the data set has "
            f"{len(label_map)} classes: {', '.join(label_map.names)}. Next: give one for each, in "
            "this order"
        )


def _require_variance(model: Detector, experiment: Experiment, shards: Shards) -> None:
    """Refuse pieces of one image where batch normalisation would get one value of a channel."""
    train, workers = experiment.train, experiment.cluster.workers
    pieces = (shards.count or workers) * train.accumulate
    if train.batch_size > pieces or (train.sync_batch_norm and workers > 1):
        return
    # Values of buffers, which a skeleton may have, are of no use to shapes.
    layers = single_values(model.to("meta"), model.train_canvases[0])
    if not layers:
        return
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    cut = f"cluster.workers {workers} x train.accumulate {train.accumulate}"
    fixed = isinstance(train.virtual_shards, int)
    if fixed or shards.count not in (None, workers):
        cut = f"train.virtual_shards {shards.count}"
        cut += f" x train.accumulate {train.accumulate}" if train.accumulate > 1 else ""
    remedies = [f"set train.batch_size to {2 * pieces} or more"]
    if pieces > 1:
        remedies.append("cut it into fewer pieces")
    if workers > 1 and not fixed:
        remedies.append("set train.sync_batch_norm: true")
    raise ConfigError(
        f"train.batch_size is {train.batch_size} in {pieces} pieces ({cut}): one image in each. "
        f"Batch normalisation {layers[0]}{more} then has a single value of each channel, its map "
        f"being 1 x 1, and so no variance. Next: {', or '.join(remedies)}, or keep those layers' "
        "statistics by train.freeze.batch_norm"
    )


def _require_defined(metric: str, val: Dataset) -> None:
    """Refuse to wait for the rise of a metric that validation images never have."""
    numbers = evaluate(val, Detections.merge([])).numbers
    if numbers[metric.removeprefix("val/")] < 0.0:
        defined = ", ".join(f"val/{name}" for name, value in numbers.items() if value >= 0.0)
        raise ConfigError(
            f"train.early_stopping.metric: {metric} is not defined on data.val, which has no boxes "
            f"of that size; defined are {defined}. Next: choose one of them"
        )


def count_training_images(experiment: Experiment) -> int:
    """Images that are visited in an epoch.

    Raises:
        DataError: the data set is missing or malformed.
    """
    data = experiment.data
    train = read_training(data).dataset
    samples = training_samples(data, train)
    factors = visit_factors(data, train, samples)
    # However large a step is.
    return Schedule(experiment.seed, samples, 1, 1, factors=factors).visits_per_epoch


def _initial(train: TrainConfig, run_dir: Path, commits: Storage) -> InitialWeights | None:
    """What the run begins with, or began with if that has gone or gone on since."""
    location = train.continue_from or train.init_from
    if location is None:
        return None
    continues = train.continue_from is not None
    path = Path(location) if continues else expected_path(location)
    recorded = recorded_initial(run_dir)
    # A run may have gone on since, or have a better checkpoint; another may not take its place.
    goes_on = continues or is_run(path)
    same = goes_on and recorded_beginning(run_dir) == location
    if recorded is not None and (same or not path.exists()) and checked_commits(commits):
        return InitialWeights(str(path.absolute()), recorded, "state" if continues else "file")
    return find_state(location, recorded) if continues else find_initial(location, recorded)


def require_state(job: TrainingJob) -> int:
    """Refuse the state of another run that a job cannot begin with, before anything is started.

    Returns:
        Steps behind it.

    Raises:
        ConfigError: it is of other classes, another network or another optimizer, or further than
            this run is to go.
        DataError: its files cannot be read.
    """
    initial = job.initial
    assert initial is not None, "asked only of jobs that have one"
    state = load_state(initial, job.label_map)
    job.require_ahead(state.step, where=initial.path)
    model = _skeleton(job.experiment, len(job.label_map))
    adapt(model, job.experiment.train)
    optimizer = build_optimizer(model, job.experiment.train.optimizer)
    trouble = differing(state.model, model.state_dict())
    if trouble is None:
        try:
            optimizer_from_flat(optimizer, model.named_parameters(), state.optimizer)
        except StorageError as error:
            trouble = str(error).partition(". Next:")[0]
    if trouble is None:
        return state.step
    raise ConfigError(
        f"train.continue_from: {initial.path} cannot be gone on with: {trouble}. Next: write "
        "`detector`, train.optimizer and train.freeze as that run has them, or begin with its "
        "weights alone by train.init_from"
    )
