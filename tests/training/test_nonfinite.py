"""NaN and infinities, wherever they come from: nothing changes, and the step can be redone."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.structures import LossTerm
from orchestrator.checkpoints.codec import weights_digest
from orchestrator.cli.main import main
from orchestrator.config.schema import AdamWOptimizer, EmaConfig, SGDOptimizer, TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import StorageError
from orchestrator.runs.plan import Plan
from orchestrator.tracking.events import read_events
from orchestrator.training import nonfinite_dump, session
from orchestrator.training.nonfinite_guard import NonFiniteError
from orchestrator.training.replay import replay
from orchestrator.training.session import open_store, run_rank
from orchestrator.training.state import capture
from orchestrator.training.stepper import Stepper
from tests.support.chaos_run import DEVICE, SmallDetector, small_plan
from tests.support.one_step import batch_of, stepper_for

VALUES = (math.nan, math.inf, -math.inf)


def stepper_of(rng: random.Random) -> Stepper:
    torch.manual_seed(0)
    optimizer = rng.choice([SGDOptimizer(lr=0.1, momentum=0.9), AdamWOptimizer(lr=0.01)])
    config = TrainConfig(
        epochs=1, batch_size=4, optimizer=optimizer, ema=EmaConfig(decay=0.9, warmup_steps=0)
    )
    return stepper_for(SmallDetector().to(DEVICE.device()).train(), config, DEVICE)


def bits(stepper: Stepper) -> str:
    """SHA-256 over every bit of the state, NaNs included."""
    state = capture(stepper, step=0, scalars={})
    digest = hashlib.sha256()
    for group, tensors in state.groups().items():
        for name, tensor in sorted(tensors.items()):
            digest.update(f"{group}/{name}".encode() + tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def spoil(tensor: Tensor, rng: random.Random, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[rng.randrange(tensor.numel())] = value


@pytest.mark.parametrize("number", range(100))
def test_a_bad_step_changes_no_bit(number: int) -> None:
    rng = random.Random(number)
    where = ("input", "loss", "gradient", "weight", "ema")[number % 5]
    value = VALUES[number // 5 % 3]
    stepper = stepper_of(rng)
    for step in range(2):
        assert stepper.run(batch_of(step), learning_rate=0.01, stop=False).applied
    batch = batch_of(2)
    model = stepper.model
    if where == "input":
        batch.boxes.reshape(-1)[rng.randrange(batch.boxes.size)] = value
    elif where == "loss":
        term = rng.choice(["near", "far"])
        real = model.loss_terms

        def loss_terms(*arguments: Any) -> dict[str, LossTerm]:
            terms = real(*arguments)
            return {**terms, term: terms[term]._replace(sum=terms[term].sum * value)}

        model.loss_terms = loss_terms  # type: ignore[method-assign]
    elif where == "gradient":
        parameter = rng.choice(list(model.parameters()))

        def poison(gradient: Tensor) -> Tensor:
            gradient = gradient.clone(memory_format=torch.contiguous_format)
            spoil(gradient, rng, value)
            return gradient

        parameter.register_hook(poison)
    elif where == "weight":
        spoil(rng.choice(list(model.parameters())), rng, value)
    else:
        assert stepper.average is not None
        spoil(stepper.average.tensors["conv.weight"], rng, value)
    before = bits(stepper)
    report = stepper.run(batch, learning_rate=0.01, stop=False)
    assert not report.applied
    assert not report.overflow
    assert report.sound == (where not in ("weight", "ema"))
    assert bits(stepper) == before
    assert bool(stepper.damaged()) == (where in ("weight", "ema"))


@pytest.fixture(autouse=True)
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: SmallDetector())


def builder(kind: type[SmallDetector]) -> Callable[..., SmallDetector]:
    return lambda *_, **__: kind()


class Poisoned(LocalStream):
    """From one step on, the second image's box is infinite."""

    first = 4

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step >= self.first:
                boxes = batch.boxes.copy()
                boxes[1, 0, 0] = np.inf
                batch = dataclasses.replace(batch, boxes=boxes)
            yield batch


def run(plan: Plan, stream: LocalStream) -> Any:
    return run_rank(plan.job, stream, accelerator=DEVICE)


def test_after_some_in_a_row_the_run_is_back_at_its_last_good_commit(
    tmp_path: Path, digits: Path
) -> None:
    plan = small_plan(tmp_path / "run", digits)
    with pytest.raises(NonFiniteError, match=r"3 times in a row.*back at commit 4.*replay"):
        run(plan, Poisoned(plan.batches))
    # Steps 5 and 6 were committed as skipped and are taken back.
    assert [commit.step for commit in open_store(plan.job).commits()] == [1, 2, 3, 4]
    whole = small_plan(tmp_path / "whole", digits)
    expected = run(whole, LocalStream(whole.batches))
    healed = run(plan, LocalStream(plan.batches))
    assert healed.resumed_from == 4
    assert healed.weights_sha256 == expected.weights_sha256


def test_the_evidence_repeats_the_step(
    tmp_path: Path, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = small_plan(tmp_path / "run", digits)
    with pytest.raises(NonFiniteError):
        run(plan, Poisoned(plan.batches))
    assert nonfinite_dump.kept_steps(plan.job.path) == [4, 5, 6]
    expected = next(iter(Poisoned(plan.batches).train_batches(5, 6)))
    found = nonfinite_dump.read(plan.job.path, 5)
    for name in ("images", "boxes", "labels", "valid", "sample_ids", "image_ids", "transforms"):
        assert np.array_equal(getattr(found.batches[0], name), getattr(expected, name)), name
    # The state is that after four good steps, which the bad ones left alone.
    assert weights_digest(found.state) == weights_digest(open_store(plan.job).load(4))
    replayed = replay(plan.job.path, 5, accelerator=DEVICE)
    assert replayed.reproduced
    assert replayed.images == [expected.image_ids[1]]
    assert replayed.weights == []
    assert main(["replay", str(plan.job.path)]) == 0
    output = capsys.readouterr().out
    assert "step 6" in output
    assert f"boxes of images: {_second_image(plan, 6)}" in output
    assert "reproduced" in output


def _second_image(plan: Plan, step: int) -> int:
    return int(next(iter(LocalStream(plan.batches).train_batches(step, step + 1))).image_ids[1])


def test_a_replay_names_the_module_and_the_gradients(tmp_path: Path, digits: Path) -> None:
    class Exploding(SmallDetector):
        def __init__(self) -> None:
            super().__init__()
            with torch.no_grad():
                self.head.weight.fill_(3e38)

    plan = small_plan(tmp_path / "run", digits)
    with mock.patch.object(session, "build_detector", builder(Exploding)):
        with pytest.raises(NonFiniteError):
            run(plan, LocalStream(plan.batches))
        replayed = replay(plan.job.path, None, accelerator=DEVICE)
    assert replayed.reproduced
    assert replayed.modules == ["head (Linear)"]
    assert "head.weight" in replayed.gradients
    assert replayed.images == replayed.weights == []


def test_what_is_finite_when_repeated_blames_the_machine(tmp_path: Path, digits: Path) -> None:
    class Flaky(SmallDetector):
        def loss_terms(self, *arguments: Any) -> dict[str, LossTerm]:
            terms = super().loss_terms(*arguments)
            return {name: term._replace(sum=term.sum * math.nan) for name, term in terms.items()}

    plan = small_plan(tmp_path / "run", digits)
    with (
        mock.patch.object(session, "build_detector", builder(Flaky)),
        pytest.raises(NonFiniteError),
    ):
        run(plan, LocalStream(plan.batches))
    replayed = replay(plan.job.path, 0, accelerator=DEVICE)
    assert not replayed.reproduced
    assert "look at the machine" in list(replayed.lines())[-1]


def test_weights_that_went_bad_in_memory_are_never_committed(tmp_path: Path, digits: Path) -> None:
    class Decaying(SmallDetector):
        """A weight that no output depends on goes bad in the fifth step."""

        def __init__(self) -> None:
            super().__init__()
            self.spare = torch.nn.Parameter(torch.zeros(3))
            self.calls = 0

        def loss_terms(self, *arguments: Any) -> dict[str, LossTerm]:
            self.calls += 1
            if self.calls == 5:
                self.spare.data[1] = math.nan
            return super().loss_terms(*arguments)

    plan = small_plan(tmp_path / "run", digits)
    with (
        mock.patch.object(session, "build_detector", builder(Decaying)),
        pytest.raises(NonFiniteError, match=r"not finite: .*spare.*back at commit 4"),
    ):
        run(plan, LocalStream(plan.batches))
    store = open_store(plan.job)
    assert [commit.step for commit in store.commits()] == [1, 2, 3, 4]
    assert torch.isfinite(store.load(4).model["spare"]).all()


def test_only_the_first_bad_steps_are_kept(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite_dump, "MOST_STEPS", 2)
    plan = small_plan(tmp_path / "run", digits, "train.nonfinite_limit=5")
    with pytest.raises(NonFiniteError, match="an earlier such step"):
        run(plan, Poisoned(plan.batches))
    assert nonfinite_dump.kept_steps(plan.job.path) == [4, 5]
    with pytest.raises(StorageError, match="step 7 is not kept; there are 4, 5"):
        nonfinite_dump.read(plan.job.path, 7)


def test_a_full_disk_costs_the_evidence_and_not_the_run(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnceBad(Poisoned):
        def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
            good = LocalStream.train_batches(self, start_step, stop_step)
            for batch, bad in zip(good, super().train_batches(start_step, stop_step), strict=True):
                yield bad if batch.step == self.first else batch

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nonfinite_dump.np, "savez_compressed", full)
    plan = small_plan(tmp_path / "run", digits)
    assert run(plan, OnceBad(plan.batches)).state == "done"
    notes = [e.text for e in read_events(plan.job.path / "events.jsonl") if e.kind == "evidence"]
    assert notes == ["step 4 could not be kept: [Errno 28] No space left on device"]
    assert nonfinite_dump.kept_steps(plan.job.path) == []


def test_nothing_to_replay_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no complete step"):
        nonfinite_dump.read(tmp_path)
