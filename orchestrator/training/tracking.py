"""How a training run appears in MLflow, and the artifacts it leaves there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.config.resolve import ResolvedExperiment, flatten
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.mlflow_names import resolve_tracking_uri
from orchestrator.tracking.mlflow_shipper import MlflowShipper, RunStatus, Shipped
from orchestrator.tracking.run_card import PAGE_NAME
from orchestrator.tracking.shipping import RunSpec, ShipState
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.member import Member


class Tracking:
    """Ships a run to MLflow while it lasts; does nothing where ``tracking.mlflow`` is null.

    Args:
        resolved: the experiment; its values become the run's parameters.
        job: whose run folder is shipped.
        member: what the run is in a sweep; None for a run of its own.
    """

    def __init__(
        self, resolved: ResolvedExperiment, job: TrainingJob, member: Member | None = None
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
                **({} if member is None else member.tags),
            },
            params={**flatten(resolved.tree)},
            artifacts={
                "config/resolved.yaml": str(job.path / "config" / "resolved.yaml"),
                "label_map.json": str(job.path / "label_map.json"),
                **({} if member is None else member.artifacts),
            },
            parent=None if member is None else member.parent,
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
            "eval/coco_results.json": str(run_dir / "eval" / "coco_results.json"),
            "eval/per_class.csv": str(run_dir / "eval" / "per_class.csv"),
            "run_card.md": str(run_dir / "run_card.md"),
            PAGE_NAME: str(run_dir / PAGE_NAME),
        }
        if best is not None:
            artifacts["checkpoints/best"] = str(best)
        return self._shipper.close(status, artifacts=artifacts, tags=tags)


def ending_tags(outcome: Outcome) -> dict[str, str]:
    """Tags that say how a run ended, and why, if it did so by itself."""
    tags = {"ended": outcome.state}
    if outcome.early_stopping is not None:
        tags["early_stopping"] = outcome.early_stopping["reason"]
    return tags
