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
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.config.tracking_uri import sqlite_path
from orchestrator.errors import StorageError
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import EVENTS, EVENTS_KEPT, MLFLOW, MLFLOW_SPEC
from orchestrator.tracking.artifacts import ArtifactSender
from orchestrator.tracking.description import input_of, new_params, tags_of
from orchestrator.tracking.events import read_events
from orchestrator.tracking.mlflow_names import clean_name

#: MLflow's own limits on one call.
_MAX_METRICS = 1000
_MAX_PARAMS_OR_TAGS = 100
#: Answers to what a server will not take, however often it is sent.
_REFUSALS = range(400, 429)

#: Tag that names a run before MLflow has given it an id.
RUN_KEY = "orchestrator_run_key"
_PARENT = "mlflow.parentRunId"

#: Makes an ``mlflow.MlflowClient``; untyped, so that MLflow is imported only where it is used.
Connect: TypeAlias = Callable[[str], Any]


@dataclass(frozen=True)
class RunSpec:
    """How a run is to appear in MLflow; plain data.

    Attributes:
        tracking_uri: absolute, see :func:`orchestrator.config.tracking_uri.resolve_tracking_uri`.
        experiment: name of the MLflow experiment; made when missing.
        run_name: as the list of runs shows it.
        tags: by name.
        params: plain values by dotted path.
        artifacts: files and folders by the path they get among the artifacts. What does not exist
            yet is taken when it does.
        datasets: what it learns from: ``name``, ``digest``, ``context``, ``source`` and ``profile``
            of each.
        parent: run folder of the run that this one is a child of; None for none. Nothing is
            shipped before that one is known to MLflow.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)
    parent: str | None = None

    def save(self, run_dir: Path, status: str | None) -> None:
        """Leave what is needed to ship the run later, without the program that made it.

        Args:
            run_dir: the run folder; paths in it are written from there, so it may move.
            status: that the run ended with; None while it has not.
        """
        root = run_dir.absolute()
        kept = {
            place: Path(path).relative_to(root).as_posix() if _is_in(path, root) else path
            for place, path in self.artifacts.items()
        }
        tree = {**asdict(self), "artifacts": kept, "status": status}
        write_atomic(run_dir / MLFLOW_SPEC, json.dumps(tree, indent=1).encode("ascii"))

    @classmethod
    def load(cls, run_dir: Path) -> tuple[RunSpec, str | None]:
        """What :meth:`save` has left.

        Raises:
            StorageError: nothing, or nothing that can be read.
        """
        path = run_dir / MLFLOW_SPEC
        try:
            tree = read_json(path)
            status = tree.pop("status")
            spec = cls(**tree)
            found = {
                place: str(run_dir.absolute() / source) for place, source in spec.artifacts.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"{path}: cannot be read ({error}), so it is not known how the run is to appear in "
                "MLflow. Next: start the same run again, which ships what is missing; a run with "
                "tracking.mlflow: null is shipped nowhere"
            ) from error
        return replace(spec, artifacts=found), status


@dataclass
class ShipState:
    """What MLflow is known to have; the content of ``mlflow.json``.

    Attributes:
        tracking_uri: where.
        key: value of the tag :data:`RUN_KEY`.
        run_id: None until the run exists.
        experiment_id: of the MLflow experiment that holds the run; None until the run exists.
        offset: byte offset in the event log; everything before it has arrived.
        artifacts: fingerprint of each file that has arrived, by its path; empty of a part that was
            begun.
        parts: bytes of a part of those files that go in parts, by their paths.
        samples: of the machine that have been sent.
        last_time_ms: time of the last event that has arrived.
        status: set once the run has been closed with it; None while it is open.
    """

    tracking_uri: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    run_id: str | None = None
    experiment_id: str | None = None
    offset: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)
    samples: int = 0
    last_time_ms: int | None = None
    status: str | None = None

    @classmethod
    def load(cls, run_dir: Path) -> ShipState | None:
        """The recorded state; None when there is none or it cannot be read."""
        try:
            return cls(**read_json(run_dir / MLFLOW))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def ensure(cls, run_dir: Path, tracking_uri: str) -> None:
        """Leave a record that at least names the run, so that it can be taken elsewhere first."""
        known = cls.load(run_dir)
        if known is None or known.tracking_uri != tracking_uri:
            cls(tracking_uri).save(run_dir)

    def save(self, run_dir: Path) -> None:
        """Replace the record."""
        write_atomic(run_dir / MLFLOW, json.dumps(asdict(self), indent=1).encode("ascii"))


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

    @property
    def arrived(self) -> int:
        """Grows with everything that has arrived."""
        return self._state.offset + sum(map(bool, self._state.artifacts.values()))

    def ship(self) -> None:
        """Send everything that MLflow does not have yet, oldest first."""
        refused = self._measurements(ended=False)
        self._ship_artifacts()
        if refused is not None:
            raise refused

    def finish(self, status: str) -> None:
        """Ship the rest and close the run, whose status does not wait for its files.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        refused = self._measurements(ended=True)
        if self._state.status != status:
            # The last event ended the run, not the moment in which MLflow came back.
            self._client.set_terminated(self._run_id, status, self._state.last_time_ms)
            # A run that lacks its description is not complete.
            self._state.status = status if refused is None else None
            self._state.save(self.run_dir)
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
        self._state.save(self.run_dir)

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
        state = ShipState.load(self.run_dir)
        if state is None or state.tracking_uri != self.spec.tracking_uri:
            state = ShipState(self.spec.tracking_uri)
        run = self._recorded(state)
        if run is None and state.run_id is not None:
            state = ShipState(self.spec.tracking_uri)
        if not _is_line_end(self.run_dir / EVENTS, state.offset):
            # The log was replaced. What MLflow has of it already is not stored twice.
            state.offset = 0
        if run is None:
            experiment = self._experiment()
            state.save(self.run_dir)
            found = self._client.search_runs(
                [experiment], f"tags.{RUN_KEY} = '{state.key}'", max_results=1
            )
            run = found[0] if found else self._create(experiment, state.key)
        elif not ended:
            self._client.update_run(state.run_id, status="RUNNING")
        state.run_id, state.experiment_id = str(run.info.run_id), str(run.info.experiment_id)
        if not ended:
            state.status = None
        state.save(self.run_dir)
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
        tags = tags_of({**self.spec.tags, **parent}, self.spec.params, there.params, there.tags)
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
        self._state.save(self.run_dir)

    def _ship_artifacts(self) -> None:
        state = self._state
        ArtifactSender(
            self._client,
            self._run_id,
            state.artifacts,
            state.parts,
            lambda: state.save(self.run_dir),
        ).send_all(self.spec.artifacts)


def pending_points(run_dir: Path, state: ShipState | None) -> int:
    """Metric points in the log that have not arrived."""
    log = run_dir / EVENTS
    offset = state.offset if state and _is_line_end(log, state.offset) else 0
    return sum(len(event.values) for event in read_events(log, offset))


def _is_in(path: str, root: Path) -> bool:
    return Path(path).is_relative_to(root)


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
