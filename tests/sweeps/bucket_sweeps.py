"""Sweeps without Ray and without networks: all of the driver, one trial after the other.

A trial's training is replaced by arithmetic that commits, logs, evaluates and waits for verdicts as
a run does, in the bucket of the trial.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.codec import TrainState, weights_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.config.resolve import ResolvedExperiment, read_template
from orchestrator.runs.trial_context import TrialContext
from orchestrator.storage import bucket as object_storage
from orchestrator.storage.address import Place
from orchestrator.storage.bucket_mirror import BucketMirror, Records
from orchestrator.storage.lease import Holder
from orchestrator.storage.local import LocalStorage, OpenFile, Storage
from orchestrator.storage.run_files import DECISIONS, EVENTS, MEASURED, RESULT
from orchestrator.sweeps import driver, runner
from orchestrator.sweeps.fleet import Fleet
from orchestrator.tracking.events import EventLog
from tests.support.commit_scenario import COMMIT_ARGUMENTS
from tests.support.faulty_storage import BucketStorage, FaultyStorage
from tests.sweeps.sweep_cases import EXPERIMENT

NAME, LOCATION = "swept", "s3://bucket/runs?region=here"


class _Cut(FaultyStorage):
    """Does nothing any more from a certain call on, which may be done but never answered."""

    done = False

    def _call(self, name: str, key: str, *arguments: Any) -> Any:
        if self._strikes(name, key):
            if self.done and len(self.calls) - 1 == self.strike_at:
                getattr(self.inner, name)(*arguments)
            self._strike()
        return getattr(self.inner, name)(*arguments)

    def close(self, file: OpenFile) -> None:
        self._call("close", file.key, file)


class Bucket:
    """A bucket that nobody reaches any more after so many calls.

    Args:
        path: where its objects lie.
        strike: number of the first call that fails; None for none.
    """

    def __init__(self, path: Path, strike: int | None = None) -> None:
        self.path = path
        self.strike = strike
        self.calls: list[str] = []

    def open(self, location: str) -> Storage:
        path = self.path / Place.of(location).path
        path.mkdir(parents=True, exist_ok=True)
        inner = BucketStorage(path)
        inner.uploads = self.path
        storage = _Cut(inner, strike_at=self.strike, lasting=True)
        storage.done = bool((self.strike or 0) % 2)
        storage.calls = self.calls
        return storage

    def journal(self) -> list[dict[str, Any]]:
        """What the newest journal says."""
        files = sorted((self.path / "bucket" / "runs" / NAME / "journal").glob("*"))
        lines = files[-1].read_text().splitlines() if files else []
        return [json.loads(line) for line in lines]


class Sweep:
    """Drives the sweep of one section, again and again, and counts the starts of its trials."""

    def __init__(
        self, folder: Path, section: str, patch: pytest.MonkeyPatch, *overrides: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "swept.yaml"
        lines = "".join(f"  {line}\n" for line in section.strip().splitlines())
        self.file.write_text(EXPERIMENT + lines)
        self.overrides = overrides
        self.started: list[str] = []
        self.fleet: Fleet | None = None
        plan = SimpleNamespace(
            job=SimpleNamespace(
                data_digest="d" * 64,
                label_map=("a", "b"),
                initial=None,
                schedule=SimpleNamespace(steps_per_epoch=1),
            )
        )
        values: dict[str, Any] = {
            "make_plan": lambda *_: plan,
            "say_usable": lambda *_: None,
            "connected": lambda *_: nullcontext(),
            "place": lambda *_, **__: SimpleNamespace(resources_per_worker={}),
            "alive_nodes": lambda: [],
            "capacity": lambda *_: SimpleNamespace(trials=1, text="alone"),
            "Fleet": self._fleet,
        }
        for name, value in values.items():
            patch.setattr(driver, name, value)
        patch.setattr(runner, "train", self._train)
        patch.setattr(runner, "tune", SimpleNamespace(report=self._report))
        # Of one that was cut off the process goes on to live, with another sweep.
        patch.setattr(Holder, "ended_here", lambda _: True)
        self._patch = patch

    def drive(self, bucket: Bucket | None, *, force: bool = False) -> int:
        """Start, or go on; the exit code."""
        place = [f"storage={self.folder / 'work'}"]
        if bucket is not None:
            self._patch.setattr(object_storage, "_opened", bucket.open)
            place = [f"storage={LOCATION}", f"scratch={self.folder / 'work'}"]
        words = ["train.epochs=4", *place, *self.overrides]
        return driver.drive_sweep(read_template(self.file, words), force_resume=force)

    def lose_folder(self) -> None:
        """As with the disk of the driver's machine."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    @property
    def work(self) -> Path:
        return self.folder / "work" / NAME

    def summary(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads((self.work / "sweep.json").read_text())
        return tree

    def outcome(self) -> list[dict[str, Any]]:
        """What each trial came to."""
        kept = ("name", "state", "values", "score", "steps", "weights_sha256")
        return [{key: trial[key] for key in kept} for trial in self.summary()["trials"]]

    def _fleet(self, *arguments: Any) -> Fleet:
        self.fleet = _OneByOne(*arguments)
        return self.fleet

    def _report(self, result: dict[str, Any]) -> None:
        assert self.fleet is not None
        try:
            self.fleet.report(result)
        except Exception:
            assert self.fleet.failure is not None  # The trial looks at it.

    def _train(
        self,
        resolved: ResolvedExperiment,
        run_dir: Path,
        *,
        trial: TrialContext,
        mirror: BucketMirror | None,
        **_: Any,
    ) -> None:
        self.started.append(run_dir.name)
        settings = resolved.experiment.train
        rate, total = settings.optimizer.lr, settings.max_steps or settings.epochs
        fence = None if mirror is None else mirror.lock.advance()
        commits = LocalStorage(run_dir) if mirror is None else mirror.storage
        store = CommitStore(commits, fence=fence)
        found = store.latest().commit
        scored = found is None or found.metrics is not None
        state = _after(rate, None) if found is None else store.load(found.step)
        events = EventLog(run_dir / EVENTS)
        how = "done"
        while True:
            if not scored:
                events.metrics({"val/epoch": state.step, "val/AP": _score(state)}, step=state.step)
                events.flush(sync=True)
                if mirror is not None and fence is not None:
                    Records(mirror.location, run_dir, fence).push(MEASURED)
                store.attach_metrics(state.step, {"val/AP": _score(state)})
                store.wait()
            if state.step in trial.judged_epochs and not self._goes_on(run_dir, state.step):
                how = "stopped"
                break
            if state.step == total:
                break
            state, scored = _after(rate, state), False
            store.save(state, **COMMIT_ARGUMENTS)
        store.close()
        events.close()
        best = store.best()
        assert best is not None
        result = {
            "state": how,
            "metrics": {"AP": _score(state)},
            "best_checkpoint": best.key,
            "weights_sha256": weights_digest(state),
            "steps": state.step,
        }
        (run_dir / RESULT).write_text(json.dumps(result))

    def _goes_on(self, run_dir: Path, step: int) -> bool:
        file = run_dir / DECISIONS / f"{step:09d}"
        while not file.exists():
            if self.fleet is not None and self.fleet.failure is not None:
                raise RuntimeError("nobody decides any more")
            time.sleep(0.01)
        return file.read_text() == "go"


class _OneByOne(Fleet):
    """Runs one trial after the other, in this process."""

    def run(self, *, trials: int, concurrency: int) -> None:
        number = 0
        while (config := self.suggest(str(number))) is not None:
            self._runner.run(config)
            self.complete(str(number), error=False)
            number += 1
        if self.failure is not None:
            raise self.failure


def _after(rate: float, state: TrainState | None) -> TrainState:
    """The state after a step: a function of the one before and of the rate."""
    if state is None:
        zero = torch.zeros(4)
        return TrainState(0, {"w": zero}, {"momentum_buffer/w": zero}, None, {})
    momentum = 0.5 * state.optimizer["momentum_buffer/w"] + rate
    model = {"w": state.model["w"] + momentum * (state.step + 1)}
    return TrainState(state.step + 1, model, {"momentum_buffer/w": momentum}, None, {})


def _score(state: TrainState) -> float:
    return 0.5 + 0.4 * math.sin(300 * float(state.model["w"][0]))
