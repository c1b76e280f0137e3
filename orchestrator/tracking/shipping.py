"""Brings MLflow up to date with a run folder; may be interrupted and repeated anywhere.

What has arrived is recorded in ``mlflow.json`` in the run folder, always after MLflow has
acknowledged it. A crash between the two therefore sends something twice, and that is harmless:

- a metric point carries the time it was logged with, and MLflow's store keeps one row per (key,
  step, time, value);
- parameters, tags and artifacts replace themselves;
- a new run carries a key that was recorded first, so a run whose answer was lost is found again.

Nothing here is part of training: the event log and the run folder hold everything, and a database
that was deleted is filled again.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.config.tracking_uri import sqlite_path
from orchestrator.errors import StorageError
from orchestrator.storage.lease import vanished
from orchestrator.storage.run_files import EVENTS, EVENTS_KEPT
from orchestrator.tracking.artifacts import ArtifactSender
from orchestrator.tracking.description import input_of, new_params, tags_of
from orchestrator.tracking.events import read_events
from orchestrator.tracking.mlflow_names import clean_name
from orchestrator.tracking.ship_state import RunSpec, ShipState, identity_of

#: MLflow's own limits on one call.
_MAX_METRICS = 1000
_MAX_PARAMS_OR_TAGS = 100
#: Answers to what a server will not take, however often it is sent.
_REFUSALS = range(400, 429)

#: Tag that names a run before MLflow has given it an id.
RUN_KEY = "orchestrator_run_key"
_PARENT = "mlflow.parentRunId"
#: Tag of a run whose folder was copied: the run that it was copied from.
_COPIED = "copied_from_run"

#: Makes an ``mlflow.MlflowClient``; untyped, so that MLflow is imported only where it is used.
Connect: TypeAlias = Callable[[str], Any]


class RunShipper:
    """Ships one run; every method raises whatever MLflow raises and can simply be called again."""

    def __init__(self, run_dir: Path, spec: RunSpec, connect: Connect) -> None:
        self.run_dir = run_dir
        self.spec = spec
        self._connect = connect
        self._client: Any = None
        self._run_id = ""
        self._described = False
        self._state = ShipState(spec.tracking_uri)
        self._identity = identity_of(run_dir)

    @property
    def arrived(self) -> int:
        """Grows with everything that has arrived."""
        return self._state.offset + sum(map(bool, self._state.artifacts.values()))

    @property
    def is_lost(self) -> bool:
        """Whether the run folder is gone, or another one lies in its place."""
        return identity_of(self.run_dir) != self._identity

    def ship(self) -> None:
        """Send everything that MLflow does not have yet, oldest first."""
        self._require_in_place()
        refused = self._measurements(ended=False)
        self._ship_artifacts()
        if refused is not None:
            raise refused

    def finish(self, status: str) -> None:
        """Ship the rest and close the run, whose status does not wait for its files.

        Args:
            status: FINISHED, FAILED or KILLED.

        Raises:
            StorageError: the run folder is lost; MLflow has the status.
        """
        if self.is_lost and self._run_id:
            self._client.set_terminated(self._run_id, status, self._state.last_time_ms)
        self._require_in_place()
        refused = self._measurements(ended=True)
        if self._state.status != status:
            # The last event ended the run, not the moment in which MLflow came back.
            self._client.set_terminated(self._run_id, status, self._state.last_time_ms)
            # A run that lacks its description is not complete.
            self._state.status = status if refused is None else None
            self._save(self._state)
        self._ship_artifacts()
        if refused is not None:
            raise refused

    def sample(self, values: Mapping[str, float]) -> None:
        """Send a sample of the machine, once the run exists; see :mod:`.machine`."""
        from mlflow.entities import Metric

        if not self._run_id or not values:
            return
        now, step = int(time.time() * 1000), self._state.samples
        points = [Metric(key, value, now, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=points, synchronous=True)
        self._state.samples = step + 1
        self._save(self._state)

    def _require_in_place(self) -> None:
        if self.is_lost:
            raise vanished(self.run_dir)

    def _save(self, state: ShipState) -> None:
        """Record what has arrived, but not where nothing is, or the folder of something else."""
        self._require_in_place()
        state.save(self.run_dir)

    def _measurements(self, *, ended: bool) -> Exception | None:
        """Send what the log holds.

        Returns:
            Why the server has refused what describes the run, which keeps no number back: one that
            is older, or lends fewer rights, does so for ever.
        """
        from mlflow.exceptions import MlflowException

        if not self._run_id:
            self._open(ended=ended)
        refused = None
        if not self._described:
            parent = self._parent_tag()
            try:
                self._describe(parent)
            except MlflowException as error:
                if error.get_http_status_code() not in _REFUSALS:
                    raise
                refused = error
        self._ship_metrics()
        return refused

    def change(self, *, tags: Mapping[str, str], artifacts: Mapping[str, str]) -> None:
        """Add to what the run is described by; it is sent with the next call."""
        self.spec = replace(
            self.spec,
            tags={**self.spec.tags, **tags},
            artifacts={**self.spec.artifacts, **artifacts},
        )
        self._described = False

    def _parent_tag(self) -> dict[str, str]:
        """The tag by which MLflow nests runs.

        Raises:
            StorageError: the parent is not in MLflow yet.
        """
        if self.spec.parent is None:
            return {}
        parent = ShipState.load(Path(self.spec.parent))
        if parent is None or parent.run_id is None:
            raise StorageError(f"{self.spec.parent}: this parent run is not in MLflow yet")
        return {_PARENT: parent.run_id}

    def _open(self, *, ended: bool) -> None:
        """Find or create the run; one that has ended is not shown as running again."""
        self._client = _connected(self.spec.tracking_uri, self._connect)
        state = ShipState.of(self.run_dir, self.spec)
        run = self._recorded(state)
        if run is None and state.run_id is not None:
            state = ShipState(self.spec.tracking_uri, folder=self.spec.folder)
        if not _is_line_end(self.run_dir / EVENTS, state.offset):
            # The log was replaced. What MLflow has of it already is not stored twice.
            state.offset = 0
        if run is None:
            experiment = self._experiment()
            self._save(state)
            found = self._client.search_runs(
                [experiment], f"tags.{RUN_KEY} = '{state.key}'", max_results=1
            )
            run = found[0] if found else self._create(experiment, state.key)
        elif not ended:
            self._client.update_run(state.run_id, status="RUNNING")
        state.run_id, state.experiment_id = str(run.info.run_id), str(run.info.experiment_id)
        if not ended:
            state.status = None
        self._save(state)
        self._state, self._run_id = state, state.run_id

    def _recorded(self, state: ShipState) -> Any:
        """The recorded run; None without one, or when it was deleted, alone or with everything."""
        from mlflow.exceptions import MlflowException

        if state.run_id is None:
            return None
        try:
            run = self._client.get_run(state.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return None if run.info.lifecycle_stage == "deleted" else run

    def _experiment(self) -> str:
        """Id of the experiment, which another process may be making at the same moment."""
        from mlflow.exceptions import MlflowException

        name = self.spec.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, self._artifact_root()))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise StorageError(
                f"the experiment {name!r} was deleted in MLflow; restore it there, or set "
                "tracking.experiment to another name"
            )
        return str(found.experiment_id)

    def _artifact_root(self) -> str | None:
        """Where artifacts go; None where a server decides, which MLflow's default would not."""
        if self.spec.tracking_uri.split(":", 1)[0] in ("http", "https", "databricks"):
            return None
        database = sqlite_path(self.spec.tracking_uri)
        folder = database.parent if database else self.run_dir.absolute().parent
        return (folder / "mlartifacts").as_uri()

    def _create(self, experiment: str, key: str) -> Any:
        tags = {RUN_KEY: key, "mlflow.source.name": "orchestrator", "mlflow.source.type": "LOCAL"}
        return self._client.create_run(
            experiment, int(time.time() * 1000), tags=tags, run_name=self.spec.run_name
        )

    def _describe(self, parent: Mapping[str, str]) -> None:
        """Tags, data, and those parameters that the run does not have: MLflow never changes one."""
        there = self._client.get_run(self._run_id).data
        params = new_params(self.spec.params, there.params)
        copied = self._state.copied_from
        own = {} if copied is None else {_COPIED: copied}
        tags = tags_of(
            {**self.spec.tags, **parent, **own}, self.spec.params, there.params, there.tags
        )
        for start in range(0, len(params), _MAX_PARAMS_OR_TAGS):
            chunk = params[start : start + _MAX_PARAMS_OR_TAGS]
            self._client.log_batch(self._run_id, params=chunk, synchronous=True)
        for start in range(0, len(tags), _MAX_PARAMS_OR_TAGS):
            chunk = tags[start : start + _MAX_PARAMS_OR_TAGS]
            self._client.log_batch(self._run_id, tags=chunk, synchronous=True)
        if self.spec.datasets:
            self._client.log_inputs(self._run_id, [input_of(one) for one in self.spec.datasets])
        self._described = True

    def _ship_metrics(self) -> None:
        from mlflow.entities import Metric

        log = self.run_dir / EVENTS
        if not log.exists():
            return
        # What MLflow has must not be lost here: a resume would log it again at another time.
        size = min(log.stat().st_size, _kept_bytes(self.run_dir))
        if size <= self._state.offset:
            return
        with log.open("rb") as file, contextlib.suppress(OSError):
            os.fsync(file.fileno())
        points: list[Any] = []
        end = self._state.offset
        for event in read_events(log, end):
            if event.end > size:
                break
            # MLflow refuses a time before 1970, and with it all that is sent beside it.
            time_ms = max(0, event.time_ms)
            points += [
                Metric(clean_name(key), value, time_ms, event.step)
                for key, value in event.values.items()
            ]
            end = event.end
            self._state.last_time_ms = event.time_ms
            if len(points) >= _MAX_METRICS:
                self._send(points, end)
                points = []
        if end > self._state.offset:
            self._send(points, end)

    def _send(self, points: list[Any], end: int) -> None:
        for start in range(0, len(points), _MAX_METRICS):
            self._client.log_batch(
                self._run_id, metrics=points[start : start + _MAX_METRICS], synchronous=True
            )
        self._state.offset = end
        self._save(self._state)

    def _ship_artifacts(self) -> None:
        state = self._state
        ArtifactSender(
            self._client,
            self._run_id,
            state.artifacts,
            state.parts,
            lambda: self._save(state),
        ).send_all(self.spec.artifacts)


def pending_points(run_dir: Path, state: ShipState | None) -> int:
    """Metric points in the log that have not arrived."""
    log = run_dir / EVENTS
    offset = state.offset if state and _is_line_end(log, state.offset) else 0
    return sum(len(event.values) for event in read_events(log, offset))


def _kept_bytes(run_dir: Path) -> float:
    try:
        return int((run_dir / EVENTS_KEPT).read_bytes())
    except FileNotFoundError:
        return math.inf


def _is_line_end(log: Path, offset: int) -> bool:
    """Whether a recorded offset can belong to this log."""
    if offset == 0:
        return True
    try:
        with log.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"
    except OSError:
        return False


def _connected(uri: str, connect: Connect) -> Any:
    """A client whose database exists.

    The first to open a SQLite file creates its tables, for several seconds; two at once would fail,
    so they take turns.
    """
    path = sqlite_path(uri)
    if path is None:
        return connect(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return connect(uri)
