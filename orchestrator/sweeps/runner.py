"""What runs in a trial's process: the ordinary driver of a run, and a line to Ray Tune.

A trial goes on from the commits of its own run, so Tune keeps no checkpoints. It ends by
itself, in every case: a trial that Tune killed would leave its workers' places on the cluster taken
(ray-project/ray#54305).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from orchestrator.config.places import bucket_of
from orchestrator.config.printing import dump_yaml
from orchestrator.credentials import mask
from orchestrator.errors import OrchestratorError
from orchestrator.runs.driver import train
from orchestrator.runs.trial_context import TrialContext
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket_mirror import mirrored
from orchestrator.storage.lease import HeldError
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import (
    DIFFERENCE,
    DRIVER_LOG,
    EVENTS,
    RESULT,
    STOP,
    SWEEP_BASE,
)
from orchestrator.sweeps.plan import Planner, Trial, difference_rows
from orchestrator.tracking.events import Event, read_events
from orchestrator.training.verify_sampled import SampledValueError

FAILURE_NAME = "failure.json"

_POLL_SECONDS = 0.3
_GHOST_SECONDS = 90.0


@dataclass(frozen=True)
class Runner:
    """Runs the trials of one sweep; plain data that goes to every trial's process.

    Attributes:
        planner: makes the trial from its number and values.
        cwd: folder that relative paths of the experiment start from.
        judged_epochs: ages at which a trial waits for its verdict.
        tags: of every trial's run in MLflow.
        force_resume: go on with trials although code or data has changed.
    """

    planner: Planner
    cwd: str
    judged_epochs: tuple[int, ...]
    tags: Mapping[str, str]
    force_resume: bool

    def run(self, config: Mapping[str, Any]) -> None:
        """Train one trial, reporting every evaluation to Tune.

        What goes wrong is written to the trial's folder, where the sweep's driver looks for it.

        Args:
            config: ``trial`` is its number, ``values`` what it sets, as JSON.
        """
        os.chdir(self.cwd)
        trial = self.planner.trial(config["trial"], json.loads(config["values"]))
        run_dir = self.planner.folder / trial.name
        # How an earlier start ended, or a member of a population at an earlier age.
        for name in (FAILURE_NAME, RESULT, STOP):
            (run_dir / name).unlink(missing_ok=True)
        if self._asked_to_stop():
            return
        failures: list[BaseException] = []
        begun = threading.Event()

        def call() -> None:
            try:
                self._train(trial, run_dir, begun)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=call, name="trial", daemon=True)
        thread.start()
        # In a bucket the log of an earlier start is replaced by what the bucket has of it.
        while thread.is_alive() and not begun.wait(_POLL_SECONDS):
            pass
        if begun.is_set():
            self._report(trial, run_dir / EVENTS, thread)
        if failures:
            _keep(failures[0], run_dir)

    def _train(self, trial: Trial, run_dir: Path, begun: threading.Event) -> None:
        context = TrialContext(
            parent=str(self.planner.folder),
            tags={**self.tags, "trial": trial.name},
            artifacts={
                "config/difference.json": str(run_dir / DIFFERENCE),
            },
            sampled=trial.values,
            judged_epochs=self.judged_epochs,
        )
        deadline = time.monotonic() + _GHOST_SECONDS
        while not self._trained(trial, run_dir, context, begun):
            if self._asked_to_stop():
                return
            # What a killed sweep has left running holds the run for a few seconds.
            if time.monotonic() > deadline:
                raise HeldError(f"{run_dir}: still held by another process")
            time.sleep(1.0)

    def _trained(
        self, trial: Trial, run_dir: Path, context: TrialContext, begun: threading.Event
    ) -> bool:
        """Train, unless another process still holds the run."""
        try:
            with mirrored(bucket_of(trial.resolved.experiment), run_dir) as mirror:
                # That of an earlier end is back from the bucket.
                (run_dir / RESULT).unlink(missing_ok=True)
                rows = json.dumps(difference_rows(trial), indent=1)
                write_atomic(run_dir / DIFFERENCE, rows.encode())
                begun.set()
                # What it says would otherwise mix with what its neighbours say.
                with (run_dir / DRIVER_LOG).open("a", encoding="utf-8") as log:
                    train(
                        trial.resolved,
                        run_dir,
                        force_resume=self.force_resume,
                        console=Console(file=log, soft_wrap=True),
                        trial=context,
                        mirror=mirror,
                    )
        except HeldError:
            return False
        return True

    def _asked_to_stop(self) -> bool:
        return (self.planner.folder / STOP).exists()

    def _report(self, trial: Trial, log: Path, thread: threading.Thread) -> None:
        """Tell Tune of every evaluation, those of earlier starts too, until the run has ended.

        A wish to stop is passed on to the run again and again: one that comes before its workers
        are asked for is taken for what an earlier start has left.
        """
        metric = self.planner.sweep.metric
        offset = 0
        while True:
            ended = not thread.is_alive()
            for event in _news(log, offset):
                offset = event.end
                if "val/epoch" in event.values:
                    # A score that is not defined, such as AP of small objects where there are
                    # none, is left out of the log; -1 says so, as in COCO.
                    tune.report(
                        {
                            "trial": trial.number,
                            "epoch": event.values["val/epoch"],
                            "step": event.step,
                            "score": event.values.get(metric, -1.0),
                        }
                    )
            if ended:
                return
            if self._asked_to_stop():
                with suppress(OSError):
                    (log.parent / STOP).touch()
            thread.join(_POLL_SECONDS)


def _news(log: Path, offset: int) -> list[Event]:
    """What a log has behind an offset; nothing while it cannot be read, as when a mount hangs."""
    try:
        return list(read_events(log, offset))
    except OSError:
        return []


def _keep(error: BaseException, run_dir: Path) -> None:
    tree = {
        "kind": type(error).__name__,
        "message": mask(str(error)),
        "fatal": isinstance(error, SampledValueError),
        "exit_code": getattr(error, "exit_code", OrchestratorError.exit_code),
    }
    write_atomic(run_dir / FAILURE_NAME, json.dumps(tree, indent=1).encode())


def read_end(run_dir: Path, *, error: bool) -> dict[str, Any]:
    """How a trial ended: its state, and its result or what went wrong.

    Args:
        run_dir: of the trial.
        error: whether its process was lost.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):
        failure = read_json(run_dir / FAILURE_NAME)
        return {
            "state": "failed",
            "reason": f"{failure['kind']}: {failure['message']}",
            "fatal": failure["fatal"],
            "exit_code": failure["exit_code"],
        }
    if error:
        return {"state": "failed", "reason": "its process was lost", "fatal": False}
    with suppress(OSError, ValueError, KeyError, TypeError):
        result = read_json(run_dir / RESULT)
        return {"state": result["state"], "result": result}
    return {"state": "preempted"}


def write_base(planner: Planner) -> None:
    """Leave the experiment that the trials are compared with in the sweep's folder."""
    path = planner.folder / SWEEP_BASE
    write_atomic(path, dump_yaml(planner.base).encode())
