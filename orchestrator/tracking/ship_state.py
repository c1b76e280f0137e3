"""How a run is to appear in MLflow, and what of it is there: two files in the run folder."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import MLFLOW, MLFLOW_SPEC


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
        folder: the run folder, where it is all there is of the run; None where the run is in a
            bucket and its folder a working copy.
    """

    tracking_uri: str
    experiment: str
    run_name: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, object] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    datasets: list[dict[str, str]] = field(default_factory=list)
    parent: str | None = None
    folder: str | None = None

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
        parent = self.parent
        if parent is not None and root.is_relative_to(parent):
            parent = os.path.relpath(parent, root)  # Of a trial, which moves with its sweep.
        tree = {**asdict(self), "artifacts": kept, "parent": parent, "status": status}
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
            root = run_dir.absolute()
            found = {place: str(root / source) for place, source in spec.artifacts.items()}
            folder = None if spec.folder is None else str(root)
            parent = None if spec.parent is None else os.path.normpath(root / spec.parent)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise StorageError(
                f"{path}: cannot be read ({error}), so it is not known how the run is to appear in "
                "MLflow. Next: start the same run again, which ships what is missing; a run with "
                "tracking.mlflow: null is shipped nowhere"
            ) from error
        return replace(spec, artifacts=found, folder=folder, parent=parent), status


@dataclass
class ShipState:
    """What MLflow is known to have; the content of ``mlflow.json``.

    Attributes:
        tracking_uri: where.
        key: value of the tag :data:`~orchestrator.tracking.shipping.RUN_KEY`.
        run_id: None until the run exists.
        experiment_id: of the MLflow experiment that holds the run; None until the run exists.
        offset: byte offset in the event log; everything before it has arrived.
        artifacts: fingerprint of each file that has arrived, by its path; empty of a part that was
            begun.
        parts: bytes of a part of those files that go in parts, by their paths.
        samples: of the machine that have been sent.
        last_time_ms: time of the last event that has arrived.
        status: set once the run has been closed with it; None while it is open.
        folder: of :class:`RunSpec`, when this was written.
        copied_from: id of the run that the folder is a copy of; None for none.
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
    folder: str | None = None
    copied_from: str | None = None

    @classmethod
    def load(cls, run_dir: Path) -> ShipState | None:
        """The recorded state; None when there is none or it cannot be read."""
        try:
            return cls(**read_json(run_dir / MLFLOW))
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def of(cls, run_dir: Path, spec: RunSpec) -> ShipState:
        """The record to go on with.

        A new one where there is none, for another server, and for a copy of a run: what MLflow has
        of that run is not the copy's, and stays as it is.
        """
        known = cls.load(run_dir)
        if known is None or known.tracking_uri != spec.tracking_uri:
            return cls(spec.tracking_uri, folder=spec.folder)
        if known.is_of_another(spec):
            return cls(spec.tracking_uri, folder=spec.folder, copied_from=known.run_id)
        known.folder = spec.folder
        return known

    def is_of_another(self, spec: RunSpec) -> bool:
        """Whether this was copied with its run folder: the one it was written in is there, too.

        Where that one is gone, the run has moved.
        """
        if self.folder is None or spec.folder is None or self.folder == spec.folder:
            return False
        here, there = Path(spec.folder), Path(self.folder)
        other = self.load(there)
        same = identity_of(here) == identity_of(there)
        return other is not None and other.key == self.key and not same

    @classmethod
    def ensure(cls, run_dir: Path, spec: RunSpec) -> None:
        """Leave a record that at least names the run, so that it can be taken elsewhere first."""
        state = cls.of(run_dir, spec)
        if state != cls.load(run_dir):
            state.save(run_dir)

    def save(self, run_dir: Path) -> None:
        """Replace the record."""
        write_atomic(run_dir / MLFLOW, json.dumps(asdict(self), indent=1).encode("ascii"))


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Which folder lies at a path, whatever was moved or mounted there; None without one."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_in(path: str, root: Path) -> bool:
    return Path(path).is_relative_to(root)
