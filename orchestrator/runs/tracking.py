"""How a training run appears in MLflow, and the artifacts it leaves there."""

from __future__ import annotations

import getpass
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from orchestrator.checkpoints.codec import TENSOR_FILES
from orchestrator.checkpoints.manifest import MANIFEST_NAME
from orchestrator.config.environment import FROM_ENVIRONMENT
from orchestrator.config.resolve import ResolvedExperiment, flatten
from orchestrator.config.scalars import shorten
from orchestrator.config.tracking_uri import resolve_tracking_uri
from orchestrator.runs.plan import Plan
from orchestrator.runs.trial_context import TrialContext
from orchestrator.storage.run_files import (
    DETECTIONS,
    EVENTS,
    LABEL_MAP,
    PER_CLASS,
    REPORT,
    RESOLVED,
    RUN_CARD,
    SAMPLES,
)
from orchestrator.tracking.events import LOG_LOST, read_events
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.mlflow_shipper import MlflowShipper, RunStatus, Shipped
from orchestrator.tracking.ship_state import RunSpec, ShipState
from orchestrator.training.job import Outcome, TrainingJob

logger = logging.getLogger(__name__)


#: Names and places: what a run is called and where it lies, no value that its result depends on.
_LABELS = (
    "name",
    "storage",
    "scratch",
    "cluster.address",
    "tracking.mlflow",
    "tracking.experiment",
)
#: Of a commit, what only a run that goes on needs; its manifest would miss the rest.
_LEFT_OUT = (TENSOR_FILES["optimizer"], MANIFEST_NAME)


class Tracking:
    """Ships a run to MLflow while it lasts; does nothing where ``tracking.mlflow`` is null.

    Args:
        resolved: the experiment; its values become the run's parameters.
        plan: whose run folder is shipped.
        trial: what the run is in a sweep; None for a run of its own.
        waits: at the end for the files, too, which otherwise go on arriving in the background.
        tell: told what MLflow does not take, and which of its variables are not used.
    """

    def __init__(
        self,
        resolved: ResolvedExperiment,
        plan: Plan,
        trial: TrialContext | None = None,
        *,
        waits: bool = True,
        tell: Callable[[str], None] = logger.warning,
    ) -> None:
        self._shipper: MlflowShipper | None = None
        self._waits = waits
        uri = resolved.experiment.tracking.mlflow
        if uri is None:
            return
        for line in unused_variables(resolved):
            tell(line)
        job = plan.job
        spec = RunSpec(
            tracking_uri=resolve_tracking_uri(uri, Path.cwd()),
            experiment=resolved.experiment.tracking.experiment,
            run_name=resolved.experiment.name,
            tags={
                "detector": resolved.experiment.detector.title,
                "config_digest": job.config_digest,
                "data_digest": job.data_digest,
                "run_folder": job.run_dir,
                "mlflow.note.content": description(plan),
                **source_tags(resolved),
                **lineage_of(job),
                **labels_of(resolved),
                **({} if trial is None else trial.tags),
            },
            params=parameters_of(resolved),
            artifacts={
                RESOLVED: str(job.path / RESOLVED),
                LABEL_MAP: str(job.path / LABEL_MAP),
                SAMPLES: str(job.path / SAMPLES),
                **({} if trial is None else trial.artifacts),
            },
            datasets=datasets_of(plan),
            parent=None if trial is None else trial.parent,
            folder=None if resolved.experiment.in_bucket else job.run_dir,
        )
        self._shipper = MlflowShipper(job.path, spec, say=tell)

    def name(self) -> None:
        """Record the key by which the run is found in MLflow, before MLflow hears of it."""
        if self._shipper is not None:
            ShipState.ensure(self._shipper.run_dir, self._shipper.spec)

    def start(self) -> None:
        """Begin shipping, beside training."""
        if self._shipper is not None:
            self._shipper.start()

    def close(
        self, status: RunStatus, *, run_dir: Path, best: Path | None, tags: Mapping[str, str]
    ) -> Shipped | None:
        """Ship what is left, with what is known only now; None when nothing is tracked."""
        if self._shipper is None:
            return None
        artifacts = {
            DETECTIONS: str(run_dir / DETECTIONS),
            PER_CLASS: str(run_dir / PER_CLASS),
            RUN_CARD: str(run_dir / RUN_CARD),
            REPORT: str(run_dir / REPORT),
        }
        if best is not None:
            artifacts |= checkpoint_artifacts("checkpoints/best", best)
        return self._shipper.close(status, artifacts=artifacts, tags=tags, wait=self._waits)


def parameters_of(resolved: ResolvedExperiment) -> dict[str, object]:
    """Values of the experiment, without names and places, which distinguish no two results."""
    return {k: v for k, v in flatten(resolved.tree).items() if k not in _LABELS}


def labels_of(resolved: ResolvedExperiment) -> dict[str, str]:
    """Names and places of the experiment, as tags."""
    values = flatten(resolved.tree)
    return {key: str(values[key]) for key in _LABELS if values.get(key) is not None}


def lineage_of(job: TrainingJob) -> dict[str, str]:
    """Where a run that began with the state of another one comes from, as tags."""
    if job.initial is None or job.initial.kind != "state":
        return {}
    tags = {"continued_from": job.initial.path}
    for folder in Path(job.initial.path).parents[:2]:
        state = ShipState.load(folder)
        if state is not None and state.run_id is not None:
            tags["continued_from_run"] = state.run_id
    return tags


def source_tags(resolved: ResolvedExperiment) -> dict[str, str]:
    """Who ran what: MLflow's own tags of user, file and commit, and ours."""
    git = git_info()
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # No such user in this container.
        user = str(os.getuid())
    return {
        "mlflow.user": user,
        "mlflow.source.name": str(resolved.source),
        "git_commit": "none" if git is None else git.commit,
        "git_dirty": "none" if git is None else str(git.dirty).lower(),
        **({} if git is None else {"mlflow.source.git.commit": git.commit}),
    }


def unused_variables(resolved: ResolvedExperiment) -> Iterator[str]:
    """Lines about MLflow's variables that say something else than the experiment does."""
    values = flatten(resolved.tree)
    for variable, key in FROM_ENVIRONMENT.items():
        told = os.environ.get(variable)
        if told and told != values.get(key):
            yield (
                f"tracking: {variable} is {shorten(told)}, but the experiment says {key} is "
                f"{values.get(key)}, which is used"
            )
    for variable in ("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        if os.environ.get(variable):
            yield (
                f"tracking: {variable} is set and not used; tracking.experiment names the "
                "experiment, and a run is found by its folder"
            )


def datasets_of(plan: Plan) -> list[dict[str, str]]:
    """The splits as MLflow lists data sets: digest, place, numbers of images, boxes and classes."""
    data = plan.job.experiment.data
    found = []
    for split, context in (("train", "training"), ("val", "evaluation")):
        dataset = plan.splits[split]
        section = getattr(data, split)
        place = section.shards or section.annotations or ""
        uri = place if "://" in place else str(Path(data.root).absolute() / place)
        profile = {
            "images": len(dataset),
            "boxes": len(dataset.labels),
            "classes": len(dataset.label_map),
        }
        found.append(
            {
                "name": f"{Path(data.root).name or data.root}-{split}",
                "digest": dataset.digest,
                "context": context,
                "source": json.dumps({"uri": uri}),
                "profile": json.dumps(profile),
            }
        )
    return found


def checkpoint_artifacts(place: str, commit: Path) -> dict[str, str]:
    """Files of a commit that use or examine the detector, by the paths they get below ``place``."""
    files = sorted(file for file in commit.iterdir() if file.name not in _LEFT_OUT)
    return {f"{place}/{file.name}": str(file) for file in files}


def description(plan: Plan) -> str:
    """One sentence about a run, for people."""
    experiment = plan.job.experiment
    train, val = plan.splits["train"], plan.splits["val"]
    return (
        f"{experiment.detector.title} on {Path(experiment.data.root).name}: "
        f"{len(train)} training and {len(val)} validation images, {len(train.label_map)} classes; "
        f"{experiment.train.epochs} epochs of {experiment.train.batch_size} images a step"
    )


def log_tags(run_dir: Path) -> dict[str, str]:
    """A tag that says so, where lines of the event log were lost between two starts."""
    try:
        lost = [event.text for event in read_events(run_dir / EVENTS) if event.kind == LOG_LOST]
    except OSError as error:
        return {"event_log": f"cannot be read: {error.strerror}"}
    return {"event_log": f"incomplete: {lost[-1]}"} if lost else {}


def ending_tags(outcome: Outcome) -> dict[str, str]:
    """Tags that say how a run ended, and why, if it did so by itself."""
    tags = {"ended": outcome.state}
    if outcome.early_stopping is not None:
        tags["early_stopping"] = outcome.early_stopping["reason"]
    return tags
