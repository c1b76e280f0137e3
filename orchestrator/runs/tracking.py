"""How a training run appears in MLflow, and the artifacts it leaves there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.resolve import ResolvedExperiment, flatten
from orchestrator.runs.trial_context import TrialContext
from orchestrator.storage.run_files import (
    DETECTIONS,
    EVENTS,
    LABEL_MAP,
    PER_CLASS,
    REPORT,
    RESOLVED,
    RUN_CARD,
)
from orchestrator.tracking.events import LOG_LOST, read_events
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.mlflow_names import resolve_tracking_uri
from orchestrator.tracking.mlflow_shipper import MlflowShipper, RunStatus, Shipped
from orchestrator.tracking.shipping import RunSpec, ShipState
from orchestrator.training.job import Outcome, TrainingJob


class Tracking:
    """Ships a run to MLflow while it lasts; does nothing where ``tracking.mlflow`` is null.

    Args:
        resolved: the experiment; its values become the run's parameters.
        job: whose run folder is shipped.
        trial: what the run is in a sweep; None for a run of its own.
    """

    def __init__(
        self, resolved: ResolvedExperiment, job: TrainingJob, trial: TrialContext | None = None
    ) -> None:
        self._shipper: MlflowShipper | None = None
        uri = resolved.experiment.tracking.mlflow
        if uri is None:
            return
        git = git_info()
        spec = RunSpec(
            tracking_uri=resolve_tracking_uri(uri, Path.cwd()),
            experiment=resolved.experiment.tracking.experiment,
            run_name=resolved.experiment.name,
            tags={
                "detector": resolved.experiment.detector.title,
                "config_digest": job.config_digest,
                "data_digest": job.data_digest,
                "git_commit": "none" if git is None else git.commit,
                "git_dirty": "none" if git is None else str(git.dirty).lower(),
                "run_folder": job.run_dir,
                **({} if trial is None else trial.tags),
            },
            params={**flatten(resolved.tree)},
            artifacts={
                RESOLVED: str(job.path / RESOLVED),
                LABEL_MAP: str(job.path / LABEL_MAP),
                **({} if trial is None else trial.artifacts),
            },
            parent=None if trial is None else trial.parent,
        )
        self._shipper = MlflowShipper(job.path, spec)

    def name(self) -> None:
        """Record the key by which the run is found in MLflow, before MLflow hears of it."""
        if self._shipper is not None:
            ShipState.ensure(self._shipper.run_dir, self._shipper.spec.tracking_uri)

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
            artifacts["checkpoints/best"] = str(best)
        return self._shipper.close(status, artifacts=artifacts, tags=tags)


def log_tags(run_dir: Path) -> dict[str, str]:
    """A tag that says so, where lines of the event log were lost between two starts."""
    lost = [event.text for event in read_events(run_dir / EVENTS) if event.kind == LOG_LOST]
    return {"event_log": f"incomplete: {lost[-1]}"} if lost else {}


def ending_tags(outcome: Outcome) -> dict[str, str]:
    """Tags that say how a run ended, and why, if it did so by itself."""
    tags = {"ended": outcome.state}
    if outcome.early_stopping is not None:
        tags["early_stopping"] = outcome.early_stopping["reason"]
    return tags
