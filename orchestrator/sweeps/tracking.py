"""The run in MLflow that holds the trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.resolve import flatten
from orchestrator.storage.run_files import EVENTS, RESOLVED, SWEEP_BASE, SWEEP_RESULT
from orchestrator.sweeps.plan import Planner
from orchestrator.sweeps.report import Row, ranking
from orchestrator.tracking.events import EventLog
from orchestrator.tracking.git_info import git_info
from orchestrator.tracking.mlflow_names import resolve_tracking_uri
from orchestrator.tracking.mlflow_shipper import MlflowShipper, RunStatus, Shipped
from orchestrator.tracking.shipping import RunSpec, ShipState


class SweepTracking:
    """Ships the parent run while the sweep lasts; does nothing where nothing is tracked.

    The curve of the parent is the best score so far by trials ended.

    Args:
        planner: of the sweep.
        data_digest: of the data all trials train on.
    """

    def __init__(self, planner: Planner, data_digest: str) -> None:
        self._planner = planner
        self._shipper: MlflowShipper | None = None
        experiment = planner.base.experiment
        self._log = EventLog(planner.folder / EVENTS)
        if experiment.tracking.mlflow is None:
            return
        git = git_info()
        spec = RunSpec(
            tracking_uri=resolve_tracking_uri(experiment.tracking.mlflow, Path.cwd()),
            experiment=experiment.tracking.experiment,
            run_name=experiment.name,
            tags={
                "sweep": experiment.name,
                "search": planner.sweep.search,
                "scheduler": planner.sweep.scheduler,
                "data_digest": data_digest,
                "git_commit": "none" if git is None else git.commit,
                "git_dirty": "none" if git is None else str(git.dirty).lower(),
                "run_folder": str(planner.folder),
            },
            params={**flatten(planner.base.tree)},
            artifacts={SWEEP_BASE: str(planner.folder / SWEEP_BASE)},
        )
        self._shipper = MlflowShipper(planner.folder, spec)

    def start(self) -> None:
        """Begin shipping, beside the trials."""
        if self._shipper is not None:
            self._shipper.start()

    def progress(self, rows: Sequence[Row]) -> None:
        """Log the best score so far."""
        sweep = self._planner.sweep
        ended = sum(row.state in ("done", "stopped", "failed") for row in rows)
        ranked = ranking(rows, sweep)
        best = ranked[0].value(sweep.metric) if ranked else None
        if best is not None:
            self._log.metrics({f"sweep/best_{sweep.metric.removeprefix('val/')}": best}, step=ended)

    def close(self, status: RunStatus, rows: Sequence[Row]) -> Shipped | None:
        """Ship the rest, and link the best trial; None when nothing is tracked."""
        self._log.close()
        if self._shipper is None:
            return None
        folder = self._planner.folder
        artifacts = {SWEEP_RESULT: str(folder / SWEEP_RESULT)}
        ranked = ranking(rows, self._planner.sweep)
        tags: dict[str, str] = {}
        if ranked:
            best = ranked[0]
            tags = self._best_tags(best.result or {}, best.trial.name)
            artifacts["best/resolved.yaml"] = str(folder / best.trial.name / RESOLVED)
            if best.best_checkpoint is not None:
                artifacts["best/checkpoint"] = str(folder / best.best_checkpoint)
        return self._shipper.close(status, artifacts=artifacts, tags=tags)

    def _best_tags(self, result: Mapping[str, Any], name: str) -> dict[str, str]:
        tags = {"best_trial": name, "mlflow.note.content": f"Best trial: **{name}**"}
        state = ShipState.load(self._planner.folder / name)
        if state is not None and state.run_id is not None:
            tags["best_run_id"] = state.run_id
            tags["mlflow.note.content"] += f", run {state.run_id}"
        return tags
