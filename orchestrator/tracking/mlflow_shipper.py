"""The driver's end of shipping a run to MLflow: start it, forget it, end it.

Nothing here raises, and nothing waits for what stands still: MLflow may be slow, broken or gone
without training noticing. Whatever has not arrived in the end is in the run folder; the next start
of the same run ships it, and so does ``orchestrator ship``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import orchestrator
from orchestrator.errors import StorageError
from orchestrator.storage.lease import vanished
from orchestrator.storage.run_files import MLFLOW
from orchestrator.tracking.artifacts import PATIENCE, pending_artifacts
from orchestrator.tracking.ship import FAILURE, LOCK_FILE, RECOVERED
from orchestrator.tracking.ship_state import RunSpec, ShipState, identity_of
from orchestrator.tracking.shipping import pending_points

logger = logging.getLogger(__name__)

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

#: Output of the shipping process, in the run folder.
LOG_FILE = "mlflow.log"

#: Seconds between looks at the process, and after which its silence is worth a line.
_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 60.0
#: Starts of the process; what ends again and again is not started for ever.
_STARTS = 5
#: Seconds of waiting for files after which it is said what is waited for.
_SAY_AFTER = 5.0


@dataclass(frozen=True)
class Shipped:
    """How far MLflow is.

    Attributes:
        run_id: None when the run could not be made.
        points_left: metric points that have not arrived.
        artifacts_left: paths of the artifacts that have not.
        closed: whether the run has the status it ended with.
        reason: of what is left; None when nothing is.
    """

    run_id: str | None
    points_left: int
    artifacts_left: tuple[str, ...]
    closed: bool
    reason: str | None

    @property
    def complete(self) -> bool:
        """Whether MLflow has everything."""
        return self.closed and not self.points_left and not self.artifacts_left

    def __str__(self) -> str:
        if self.complete:
            return f"MLflow run {self.run_id} is complete"
        return (
            f"MLflow lacks {self.points_left} metric points and {len(self.artifacts_left)} "
            f"artifacts of this run ({self.reason}); nothing is lost, start the same run again "
            "or use `orchestrator ship` to ship the rest"
        )


class MlflowShipper:
    """Ships a run folder in the background.

    Args:
        run_dir: the run folder, with or without an event log yet.
        spec: how the run is to appear; its artifacts may be completed by :meth:`close`.
        say: told, seldom, when the process has to be started again, or MLflow has not taken
            everything for a minute, or does again.
    """

    def __init__(
        self, run_dir: Path, spec: RunSpec, *, say: Callable[[str], None] = logger.warning
    ) -> None:
        self.run_dir = run_dir
        self.spec = spec
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None
        self._starts = 0
        self._closing = threading.Event()
        self._closed = False
        self._watcher: threading.Thread | None = None
        self._identity: tuple[int, int] | None = None  # Of the run folder, once it is there.

    def start(self, *, status: str | None = None) -> None:
        """Begin shipping what the folder holds already and what is added to it.

        Args:
            status: that the run has ended with; None while it goes on.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._identity = identity_of(self.run_dir)
            state = ShipState.load(self.run_dir)
            if os.path.lexists(self.run_dir / MLFLOW) and state is None:
                self._say(
                    f"{self.run_dir / MLFLOW} cannot be read, so it is not known which of MLflow's "
                    "runs is this one; another is made"
                )
            elif state is not None and state.is_of_another(self.spec):
                self._say(
                    f"{self.run_dir} is a copy of {state.folder}, whose run in MLflow stays as it "
                    "is; another is made, with all that the folder holds"
                )
                ShipState.ensure(self.run_dir, self.spec)
            self.spec.save(self.run_dir, status)
            (self.run_dir / LOG_FILE).unlink(missing_ok=True)
        except OSError as error:
            self._failure = f"the run folder cannot be written: {error}"
            logger.warning("%s", self._failure)
            return
        if self._spawn():
            self._watcher = threading.Thread(target=self._watch, name="shipping", daemon=True)
            self._watcher.start()

    def _spawn(self) -> bool:
        """Start the process; whether it could be."""
        command = [sys.executable, "-m", "orchestrator.tracking.ship", str(self.run_dir.absolute())]
        # The package may be importable here only because of where the driver was started.
        package = str(Path(orchestrator.__file__).absolute().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._starts += 1
        try:
            with (self.run_dir / LOG_FILE).open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    # Nor is a file of the user called mlflow.py taken for MLflow (Python 3.11).
                    env={**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                    # Ctrl-C is for the driver, which still has something to ship then.
                    start_new_session=True,
                )
        except OSError as error:
            self._failure = f"the shipping process could not start: {error}"
            logger.warning("%s", self._failure)
            return False
        self._send(asdict(self.spec))
        return True

    def _send(self, command: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            # It has ended; close() says why.
            logger.warning("the process that ships to MLflow has ended early")

    def _watch(self) -> None:
        """Start the process again when it has died, and say when nothing arrives."""
        failing_since: float | None = None
        said = False
        while not self._closing.wait(_LOOK_SECONDS):
            process = self._process
            if process is not None and process.poll() is not None:
                if self._starts >= _STARTS:
                    self._say(
                        f"MLflow is not kept up to date: the process that ships to it has ended "
                        f"{self._starts} times, see {self.run_dir / LOG_FILE}. Training goes on, "
                        "and everything is in the run folder"
                    )
                    return
                self._say(
                    f"the process that ships to MLflow has ended with {process.returncode}; "
                    "it is started again"
                )
                self._spawn()
            reason = self._last_failure()
            if reason is None:
                if said:
                    self._say("MLflow is kept up to date again")
                failing_since, said = None, False
                continue
            failing_since = failing_since or time.monotonic()
            if not said and time.monotonic() - failing_since > _SILENT_SECONDS:
                said = True
                self._say(
                    f"MLflow has not taken everything for {_SILENT_SECONDS:g} s ({reason}). "
                    "Training goes on, and everything is in the run folder"
                )

    def close(
        self,
        status: RunStatus,
        *,
        artifacts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        timeout: float = 60.0,
        patience: float = 1.25 * PATIENCE,
        wait: bool = True,
    ) -> Shipped:
        """Ship the rest, give the run its status and end the process.

        Args:
            status: how the run ended.
            artifacts: further ones, by the path they get.
            tags: further ones.
            timeout: seconds in which nothing arrives, after which the process is ended and the
                rest stays behind. A file of any size on a line of any speed gets the time it takes.
            patience: the same for files, where it is longer.
            wait: for the files, too; else they go on arriving in the background once MLflow knows
                all numbers and the status.
        """
        last = dict(artifacts or {})
        more = dict(tags or {})
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        if not self._closed:
            self._closed = True
            self.spec = replace(
                self.spec,
                artifacts={**self.spec.artifacts, **last},
                tags={**self.spec.tags, **more},
            )
            self._save(status)
        if self._process is not None:
            if self._process.poll() is not None:
                self._spawn()
            self._send({"status": status, "tags": more, "artifacts": last})
            self._await(self._process, timeout=timeout, patience=patience, wait=wait)
            self._process = None
        return self.shipped(last)

    def _save(self, status: RunStatus) -> None:
        """Leave what whoever ships the run later has to go by."""
        if self._identity not in (None, identity_of(self.run_dir)):
            # A folder that is made anew would be in the way of the one that was moved.
            self._failure = str(vanished(self.run_dir))
            return
        try:
            self.spec.save(self.run_dir, status)
        except OSError as error:
            logger.warning("%s: %s", self.run_dir, error)

    def _await(
        self, process: subprocess.Popen[bytes], *, timeout: float, patience: float, wait: bool
    ) -> None:
        """Wait for the process as long as something arrives."""
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        begun = moved = time.monotonic()
        signs = self._signs(process)
        said = False
        try:
            while process.poll() is None:
                time.sleep(0.05)
                now = time.monotonic()
                latest = self._signs(process)
                moved, signs = (now, latest) if latest != signs else (moved, signs)
                if latest.told and not wait:
                    self._failure = "its files are still on their way, in the background"
                    return
                # For a file a server may take longer, after which it is sent in parts.
                limit = max(timeout, patience) if latest.told else timeout
                if now - moved > limit:
                    self._failure = f"MLflow took longer than {limit:g} s"
                    process.kill()
                    process.wait()
                    return
                if latest.told and not said and now - begun > _SAY_AFTER:
                    said = True
                    if not self.shipped().artifacts_left:
                        continue
                    self._say(
                        "MLflow has all numbers, and files are still on their way; Ctrl-C leaves "
                        "them to the background"
                    )
        except KeyboardInterrupt:
            self._failure = "interrupted; its files are still on their way, in the background"

    def _signs(self, process: subprocess.Popen[bytes]) -> _Signs:
        """What changes while something arrives."""
        state = ShipState.load(self.run_dir)
        told = state is not None and state.status is not None
        record = ""
        with suppress(OSError):
            record = str((self.run_dir / MLFLOW).stat().st_mtime_ns)
        read = ""
        if told:
            # How far it has read into the file that it sends; imports before that read as well.
            with suppress(OSError):
                read = Path(f"/proc/{process.pid}/io").read_text().partition("\n")[0]
        return _Signs(told, record, read)

    def shipped(self, more: Mapping[str, str] | None = None) -> Shipped:
        """How far MLflow is, by what is recorded; ``more`` are artifacts beside the run's own."""
        artifacts = {**self.spec.artifacts, **(more or {})}
        state = ShipState.load(self.run_dir)
        if state is not None and state.tracking_uri != self.spec.tracking_uri:
            state = None
        blank = ShipState(self.spec.tracking_uri)
        shipped = Shipped(
            run_id=state.run_id if state else None,
            points_left=pending_points(self.run_dir, state),
            artifacts_left=tuple(
                place for place, _ in pending_artifacts(artifacts, (state or blank).artifacts)
            ),
            closed=state is not None and state.status is not None,
            reason=None,
        )
        if shipped.complete:
            return shipped
        reason = self._failure or self._last_failure() or f"see {self.run_dir / LOG_FILE}"
        return replace(shipped, reason=reason)

    def _last_failure(self) -> str | None:
        """What the process said last about why it cannot ship; None while it can."""
        try:
            text = (self.run_dir / LOG_FILE).read_text("utf-8", "replace")
        except OSError:
            return None
        said = [line for line in text.splitlines() if line.startswith((FAILURE, RECOVERED))]
        if not said or said[-1] == RECOVERED:
            return None
        return said[-1].removeprefix(FAILURE)


class _Signs(NamedTuple):
    """Whether MLflow knows how the run ended, and two things that change while files arrive."""

    told: bool
    record: str
    read: str


def ship_later(
    run_dir: Path, *, say: Callable[[str], None], only_pending: bool = False
) -> Shipped | None:
    """Ship what MLflow lacks of a run that is over.

    Args:
        run_dir: the run folder.
        say: told what goes on.
        only_pending: start nothing where MLflow has everything as far as is recorded.

    Returns:
        How far MLflow is then; None where nothing was started.

    Raises:
        StorageError: the run was never tracked, or is shipped by its own program.
    """
    spec, status = RunSpec.load(run_dir)
    try:
        with (run_dir / LOCK_FILE).open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(
            f"{run_dir}: another process ships this run, as it does while the run trains. Next: "
            "wait for it, then ask again"
        ) from error
    except OSError as error:
        raise StorageError(f"{run_dir}: cannot be written ({error.strerror})") from error
    ended: dict[str, RunStatus] = {"FINISHED": "FINISHED", "FAILED": "FAILED"}
    shipper = MlflowShipper(run_dir, spec, say=say)
    if only_pending and shipper.shipped().complete:
        return None
    shipper.start(status=status)
    return shipper.close(ended.get(status or "", "KILLED"))
