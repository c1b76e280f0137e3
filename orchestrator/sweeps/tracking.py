"""The run in MLflow that holds the trials of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.config.tracking_uri import resolve_tracking_uri
from orchestrator.errors import StorageError
from orchestrator.runs.plan import Plan
from orchestrator.runs.tracking import (
    checkpoint_artifacts,
    datasets_of,
    description,
    labels_of,
    parameters_of,
    source_tags,
)
from orchestrator.storage.run_files import (
    EVENTS,
    MLFLOW_SPEC,
    RESOLVED,
    SWEEP_BASE,
    SWEEP_RESULT,
)
from orchestrator.sweeps.plan import Planner
from orchestrator.sweeps.report import Row, best_checkpoint, ranking
from orchestrator.sweeps.sources import FINAL
from orchestrator.tracking.artifacts import pending_artifacts
from orchestrator.tracking.events import EventLog
from orchestrator.tracking.mlflow_shipper import (
    MlflowShipper,
    RunStatus,
    Shipped,
    ship_later,
)
from orchestrator.tracking.ship_state import RunSpec, ShipState
from orchestrator.tracking.shipping import pending_points


class SweepTracking:
    """Ships the parent run while the sweep lasts; does nothing where nothing is tracked.

    The curve of the parent is the best score so far by trials ended.

    Args:
        planner: of the sweep.
        plan: of the base experiment, whose data all trials train on.
    """

    def __init__(self, planner: Planner, plan: Plan) -> None:
        self._planner = planner
        self._shipper: MlflowShipper | None = None
        experiment = planner.base.experiment
        self._log = EventLog(planner.folder / EVENTS)
        if experiment.tracking.mlflow is None:
            return
        spec = RunSpec(
            tracking_uri=resolve_tracking_uri(experiment.tracking.mlflow, Path.cwd()),
            experiment=experiment.tracking.experiment,
            run_name=experiment.name,
            tags={
                "sweep": experiment.name,
                "search": planner.sweep.search,
                "scheduler": planner.sweep.scheduler,
                "data_digest": plan.job.data_digest,
                "mlflow.note.content": _description(planner, plan),
                "run_folder": str(planner.folder),
                **source_tags(planner.base),
                **labels_of(planner.base),
            },
            params=parameters_of(planner.base),
            artifacts={SWEEP_BASE: str(planner.folder / SWEEP_BASE)},
            datasets=datasets_of(plan),
            folder=None if experiment.in_bucket else str(planner.folder),
        )
        self._shipper = MlflowShipper(planner.folder, spec)

    def name(self) -> None:
        """Record the key by which the run is found in MLflow, before MLflow hears of it."""
        if self._shipper is not None:
            ShipState.ensure(self._planner.folder, self._shipper.spec)

    def start(self) -> None:
        """Begin shipping, beside the trials."""
        if self._shipper is not None:
            self._shipper.start()

    def progress(self, rows: Sequence[Row], *, ended: int) -> None:
        """Log the best score so far.

        Args:
            rows: the trials as they stand.
            ended: how often a trial has ended; one that failed and was tried again counts twice.
        """
        sweep = self._planner.sweep
        ranked = ranking(rows, sweep)
        best = ranked[0].value(sweep.metric) if ranked else None
        # -1 says that there is nothing to score.
        if best is not None and best >= 0:
            # Under the trials' own name as well, so that the list of runs has it in their column.
            name = f"sweep/best_{sweep.metric.removeprefix('val/')}"
            self._log.metrics({name: best, sweep.metric: best}, step=ended)

    def close(self, status: RunStatus, rows: Sequence[Row]) -> Shipped | None:
        """Ship the rest, and link the best trial; None when nothing is tracked."""
        self._log.close()
        if self._shipper is None:
            return None
        best = next(iter(ranking(rows, self._planner.sweep)), None)
        tags = {} if best is None else self._best_tags(best)
        return self._shipper.close(status, artifacts=self._artifacts(best), tags=tags)

    def catch_up(self, rows: Sequence[Row]) -> Shipped | None:
        """Ship what the end of a sweep that is over has left behind.

        Returns:
            How far MLflow is then; None where it has everything, or nothing is tracked.
        """
        if self._shipper is None or not self._lacks(rows):
            self._log.close()
            return None
        self.start()
        return self.close("FINISHED", rows)

    def _artifacts(self, best: Row | None) -> dict[str, str]:
        """What MLflow gets of a sweep at its end, by the paths it gets there."""
        folder = self._planner.folder
        artifacts = {SWEEP_RESULT: str(folder / SWEEP_RESULT)}
        if best is not None:
            artifacts["best/resolved.yaml"] = str(folder / best.trial.name / RESOLVED)
            there = best.best_checkpoint
            # That of a sweep in a bucket may not have come, which was said then.
            if there is not None and (folder / there).is_dir():
                artifacts |= checkpoint_artifacts("best/checkpoint", folder / there)
        return artifacts

    def _lacks(self, rows: Sequence[Row]) -> bool:
        """Whether MLflow has not been told everything; what it has may look otherwise by now."""
        assert self._shipper is not None
        folder, spec = self._planner.folder, self._shipper.spec
        state = ShipState.load(folder)
        if state is None or state.tracking_uri != spec.tracking_uri or state.status != "FINISHED":
            return True
        best = next(iter(ranking(rows, self._planner.sweep)), None)
        wanted = pending_artifacts({**spec.artifacts, **self._artifacts(best)}, state.artifacts)
        unknown = any(place not in state.artifacts for place, _ in wanted)
        return unknown or pending_points(folder, state) > 0

    def settle(self, rows: Sequence[Row], say: Callable[[str], None]) -> None:
        """See the files of the trials arrive, which no trial waits for at its own end."""
        if self._shipper is None:
            return
        for row in rows:
            folder = self._planner.folder / row.trial.name
            if row.state not in FINAL or not (folder / MLFLOW_SPEC).exists():
                continue
            before = ShipState.load(folder)
            try:
                shipped = ship_later(folder, say=say, only_pending=True)
            except StorageError as error:
                say(str(error))
                continue
            if shipped is None or shipped.complete:
                continue
            say(f"{row.trial.name}: {shipped}")
            if ShipState.load(folder) == before:
                # It would be waited for as long again for each of the others.
                say(
                    "MLflow takes nothing, so the other trials are not tried. Next: orchestrator "
                    f"ship {self._planner.folder}"
                )
                return

    def _best_tags(self, best: Row) -> dict[str, str]:
        assert self._shipper is not None
        name, address = best.trial.name, best_checkpoint(self._planner, best)
        note = self._shipper.spec.tags["mlflow.note.content"]
        tags = {"best_trial": name, "mlflow.note.content": f"{note}\n\nBest trial: **{name}**"}
        state = ShipState.load(self._planner.folder / name)
        if state is not None and state.run_id is not None:
            tags["best_run_id"] = state.run_id
            tags["mlflow.note.content"] += f", run {state.run_id}"
        if address is not None:
            tags["best_checkpoint"] = address
        return tags


def _description(planner: Planner, plan: Plan) -> str:
    swept = ", ".join(f"`{path}`" for path in planner.sweep.space) or "the seed"
    return (
        f"A sweep over {swept} ({planner.sweep.search}, {planner.sweep.scheduler}): "
        f"{description(plan)}"
    )
