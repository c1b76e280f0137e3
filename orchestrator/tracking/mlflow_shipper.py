"""The driver's end of shipping a run to MLflow: start it, forget it, end it.

Nothing here raises or waits longer than it was told to: MLflow may be slow, broken or gone without
training noticing. Whatever has not arrived in the end is in the run folder, and the next start of
the same run ships it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

import orchestrator
from orchestrator.tracking.ship import FAILURE
from orchestrator.tracking.shipping import (
    RunSpec,
    ShipState,
    pending_artifacts,
    pending_points,
)

logger = logging.getLogger(__name__)

RunStatus: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]

#: Output of the shipping process, in the run folder.
LOG_FILE = "mlflow.log"


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
            "to ship the rest"
        )


class MlflowShipper:
    """Ships a run folder in the background.

    Args:
        run_dir: the run folder, with or without an event log yet.
        spec: how the run is to appear; its artifacts may be completed by :meth:`close`.
    """

    def __init__(self, run_dir: Path, spec: RunSpec) -> None:
        self.run_dir = run_dir
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: str | None = None

    def start(self) -> None:
        """Begin shipping what the folder holds already and what is added to it."""
        command = [sys.executable, "-m", "orchestrator.tracking.ship", str(self.run_dir.absolute())]
        # The package may be importable here only because of where the driver was started.
        package = str(Path(orchestrator.__file__).absolute().parents[1])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with (self.run_dir / LOG_FILE).open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONPATH": path},
                    # Ctrl-C is for the driver, which still has something to ship then.
                    start_new_session=True,
                )
        except OSError as error:
            self._failure = f"the shipping process could not start: {error}"
            logger.warning("%s", self._failure)
            return
        self._send(asdict(self.spec))

    def _send(self, command: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            # It has ended; close() says why.
            logger.warning("the process that ships to MLflow has ended early")

    def close(
        self,
        status: RunStatus,
        *,
        artifacts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Shipped:
        """Ship the rest, give the run its status and end the process.

        Args:
            status: how the run ended.
            artifacts: further ones, by the path they get.
            tags: further ones.
            timeout: seconds after which the process is ended and the rest stays behind.
        """
        last = dict(artifacts or {})
        if self._process is not None:
            self._send({"status": status, "tags": dict(tags or {}), "artifacts": last})
            try:
                # Closes the pipe as well, and waits for nothing but the end of the process.
                self._process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                self._failure = f"MLflow took longer than {timeout:g} s"
                self._process.kill()
                self._process.wait()
            self._process = None
        return self._shipped({**self.spec.artifacts, **last})

    def _shipped(self, artifacts: Mapping[str, str]) -> Shipped:
        state = ShipState.load(self.run_dir)
        if state is not None and state.tracking_uri != self.spec.tracking_uri:
            state = None
        blank = ShipState(self.spec.tracking_uri)
        shipped = Shipped(
            run_id=state.run_id if state else None,
            points_left=pending_points(self.run_dir, state),
            artifacts_left=tuple(
                place for place, _ in pending_artifacts(artifacts, state or blank)
            ),
            closed=state is not None and state.status is not None,
            reason=None,
        )
        if shipped.complete:
            return shipped
        reason = self._failure or self._last_failure() or f"see {self.run_dir / LOG_FILE}"
        return replace(shipped, reason=reason)

    def _last_failure(self) -> str | None:
        """What the process said last about why it could not ship."""
        try:
            text = (self.run_dir / LOG_FILE).read_text("utf-8", "replace")
        except OSError:
            return None
        failures = [line for line in text.splitlines() if line.startswith(FAILURE)]
        return failures[-1].removeprefix(FAILURE) if failures else None
