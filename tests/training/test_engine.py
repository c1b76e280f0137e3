"""The step loop as a plain process: stopped anywhere, it ends where the unbroken one ends."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from orchestrator.config.resolve import load_experiment
from orchestrator.data import decode, files
from orchestrator.data.batch import Batch
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import OrchestratorError, StorageError
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.storage.plain_files import open_regular
from orchestrator.storage.run_files import STOP
from orchestrator.tracking.events import metric_history, read_events
from orchestrator.training import session
from orchestrator.training.job import Outcome
from orchestrator.training.nonfinite_guard import NonFiniteError
from orchestrator.training.session import open_store
from tests.support.local_runs import StoppingStream, train

EXPERIMENT = """
name: tiny
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
train:
  epochs: 2
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: cosine, warmup_epochs: 1}
  ema: {decay: 0.9, warmup_steps: 4}
  log_every_steps: 1
tracking: {mlflow: null}
"""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    build_digits(folder, Recipe(train=13, val=6, seed=3))
    return folder


def plan_in(folder: Path, digits: Path, *overrides: str) -> Plan:
    folder.mkdir(exist_ok=True)
    file = folder.parent / f"{folder.name}.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(digits)))
    return make_plan(load_experiment(file, overrides), folder, threads=1)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Plan, Outcome]:
    plan = plan_in(tmp_path_factory.mktemp("runs") / "unbroken", digits)
    return plan, train(plan)


def test_a_run_trains_scores_and_commits(unbroken: tuple[Plan, Outcome]) -> None:
    plan, outcome = unbroken
    assert plan.job.schedule.steps_per_epoch == 3
    assert (outcome.state, outcome.steps, outcome.samples) == ("done", 6, 24)
    assert outcome.metrics["AP"] >= 0.0
    log = plan.job.path / "events.jsonl"
    assert [point.step for point in metric_history(log, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in metric_history(log, "val/AP")] == [3, 6]
    rates = [point.value for point in metric_history(log, "train/lr")]
    assert rates[:4] == pytest.approx([0.0, 0.001 / 3, 0.002 / 3, 0.001])
    commits = open_store(plan.job).commits()
    assert [commit.step for commit in commits] == [3, 6]
    assert all(commit.metrics is not None for commit in commits)


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_stopped_and_started_again_it_ends_in_the_same_weights(
    at: int,
    tmp_path: Path,
    digits: Path,
    unbroken: tuple[Plan, Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Otherwise the file is looked at twice a second, and a fast machine is at the end by then.
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    plan = plan_in(tmp_path / "run", digits)
    first = train(plan, stream=StoppingStream(plan, at))
    assert (first.state, first.steps) == ("preempted", at + 1)
    (plan.job.path / STOP).unlink()
    second = train(plan)
    assert second.resumed_from == first.steps
    assert second.weights_sha256 == unbroken[1].weights_sha256
    assert second.metrics == unbroken[1].metrics
    logs = [p.job.path / "events.jsonl" for p in (plan, unbroken[0])]
    for key in ("train/loss", "train/gradient_norm", "val/AP"):
        mine, theirs = ([(p.step, p.value) for p in metric_history(log, key)] for log in logs)
        assert mine == theirs, key


def test_an_evaluation_cut_off_by_a_kill_is_made_up_for(
    tmp_path: Path, digits: Path, unbroken: tuple[Plan, Outcome]
) -> None:
    plan = plan_in(tmp_path / "run", digits)
    train(plan)
    last = open_store(plan.job).latest().commit
    assert last is not None
    (Path(last.path) / "METRICS.json").unlink()
    (plan.job.path / "events.jsonl").unlink()
    again = train(plan)
    assert again.resumed_from == again.steps == 6
    assert again.metrics == unbroken[1].metrics
    assert [p.step for p in metric_history(plan.job.path / "events.jsonl", "val/AP")] == [6]


def test_a_run_that_is_over_says_the_same_when_it_is_started_again(
    tmp_path: Path, digits: Path
) -> None:
    plan = plan_in(tmp_path / "run", digits, "train.epochs=2")
    first = train(plan)
    again = train(plan)
    assert again.resumed_from == again.steps == 6
    assert again.metrics == first.metrics
    assert again.weights_sha256 == first.weights_sha256


def test_another_seed_is_another_run(
    tmp_path: Path, digits: Path, unbroken: tuple[Plan, Outcome]
) -> None:
    other = train(plan_in(tmp_path / "run", digits, "seed=2"))
    assert other.weights_sha256 != unbroken[1].weights_sha256


class PoisonedStream(LocalStream):
    """Infinite boxes from one step on."""

    first_bad = 2

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step >= self.first_bad:
                batch = dataclasses.replace(batch, boxes=np.full_like(batch.boxes, np.inf))
            yield batch


def test_a_run_of_bad_steps_ends_with_the_evidence(tmp_path: Path, digits: Path) -> None:
    plan = plan_in(tmp_path / "run", digits, "train.checkpoint.every_steps=1")
    with pytest.raises(NonFiniteError, match=r"3 times in a row"):
        train(plan, stream=PoisonedStream(plan.batches))
    notes = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "nonfinite"]
    assert [note.step for note in notes] == [3, 4, 5]
    assert "image ids" in notes[0].text


class SkippingStream(LocalStream):
    """Loses a batch on the way."""

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        return (b for b in super().train_batches(start_step, stop_step) if b.step != 1)


def test_a_batch_of_another_step_is_refused(tmp_path: Path, digits: Path) -> None:
    plan = plan_in(tmp_path / "run", digits)
    with pytest.raises(OrchestratorError, match="batch of step 2, expected 1"):
        train(plan, stream=SkippingStream(plan.batches))


def test_a_disk_that_fails_for_a_moment_changes_no_weight(
    tmp_path: Path, digits: Path, unbroken: tuple[Plan, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_in(tmp_path / "run", digits, "train.checkpoint.every_steps=1")
    opened, tries = 0, len(files._WAITS) + 1
    monkeypatch.setattr(files, "_WAITS", (0.0,) * (tries - 1))

    def failing(path: Path) -> BinaryIO:
        nonlocal opened
        opened += 1
        if opened in range(20, 20 + tries):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return open_regular(path)

    monkeypatch.setattr(decode, "open_regular", failing)
    with pytest.raises(StorageError, match=r"\.jpg: cannot be read \(Input/output error\)"):
        train(plan)
    assert train(plan).weights_sha256 == unbroken[1].weights_sha256
    kinds = {event.kind for event in read_events(plan.job.path / "events.jsonl")}
    assert "replaced" not in kinds


def test_too_many_unreadable_images_end_the_run(tmp_path: Path, digits: Path) -> None:
    damaged = tmp_path / "digits"
    shutil.copytree(digits, damaged)
    plan = plan_in(tmp_path / "run", damaged, "data.max_bad_fraction=0")
    for name in plan.batches.train.files[:2]:  # One sample of thirteen sits out each epoch.
        (Path(plan.batches.train.root) / name).write_bytes(b"not an image")
    with pytest.raises(OrchestratorError, match=r"data\.max_bad_fraction: [12] images"):
        train(plan)
    notes = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "replaced"]
    assert 1 <= len(notes) <= 2


def test_a_few_unreadable_images_are_replaced_the_same_way_every_time(
    tmp_path: Path, digits: Path
) -> None:
    damaged = tmp_path / "digits"
    shutil.copytree(digits, damaged)
    digests = set()
    for number in range(2):
        plan = plan_in(tmp_path / f"run{number}", damaged, "data.max_bad_fraction=0.5")
        for name in plan.batches.train.files[:2]:
            (Path(plan.batches.train.root) / name).write_bytes(b"not an image")
        digests.add(train(plan).weights_sha256)
    assert len(digests) == 1
