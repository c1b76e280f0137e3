"""Runs that go on for longer, or with something new, from where they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator.config.schema import EmaConfig
from orchestrator.errors import ConfigError
from orchestrator.tracking.events import metric_history
from orchestrator.training import session
from orchestrator.training.schedules import Extension
from orchestrator.training.state import capture, restore
from orchestrator.training.stepper import Stepper
from tests.support.chaos_run import CPU, SmallDetector, digests, small_detector, small_plan
from tests.support.local_runs import train
from tests.support.one_step import stepper_for
from tests.training.test_freeze import config

RARELY = "train.checkpoint={every_epochs: 1, keep_last: 20}"
MULTISTEP = "train.schedule={name: multistep, milestones: [1.5], factors: [0.1]}"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", small_detector)


@pytest.mark.parametrize("schedule", ["train.schedule={name: constant}", MULTISTEP])
def test_two_epochs_and_three_are_five(schedule: str, tmp_path: Path, digits: Path) -> None:
    whole = small_plan(tmp_path / "whole", digits, schedule, RARELY, "train.epochs=5")
    assert train(whole).steps == 30
    for epochs, done in ((2, 12), (5, 30)):
        plan = small_plan(tmp_path / "run", digits, schedule, RARELY, f"train.epochs={epochs}")
        assert train(plan).steps == done
    found, expected = (digests(tmp_path / name) for name in ("run", "whole"))
    assert found[30] == expected[30]
    assert found == {step: expected[step] for step in found}


def test_a_cosine_that_is_held_is_held_at_its_end(tmp_path: Path, digits: Path) -> None:
    folder = tmp_path / "run"
    train(small_plan(folder, digits))
    before = digests(folder)[12]
    plan = small_plan(folder, digits, "train.epochs=3")
    extended = replace(plan, job=replace(plan.job, extensions=(Extension(2, "hold"),)))
    train(extended)
    rates = {p.step: p.value for p in metric_history(folder / "events.jsonl", "train/lr")}
    # The end of a cosine is a thousandth of 0.01.
    assert [rates[step] for step in range(13, 19)] == pytest.approx([0.00001] * 6)
    assert digests(folder)[12] == before


def stepper(model: SmallDetector, ema: EmaConfig | None) -> Stepper:
    return stepper_for(model, config(ema=ema), CPU)


def test_an_average_that_is_new_begins_from_the_weights_that_are_there() -> None:
    torch.manual_seed(1)
    trained = SmallDetector()
    state = capture(stepper(trained, None), step=5, scalars={})
    assert state.ema is None
    torch.manual_seed(2)
    later = stepper(SmallDetector(), EmaConfig(decay=0.99, warmup_steps=0))
    restore(state, later)
    assert later.average is not None
    for name, tensor in trained.state_dict().items():
        assert torch.equal(later.average.tensors[name], tensor), name
        assert later.average.tensors[name] is not tensor


def test_a_loss_scale_that_is_new_begins_anew() -> None:
    """The run went on in fp16: its commits have none."""
    state = capture(stepper(SmallDetector(), None), step=5, scalars={})
    assert state.scalars["scaler"] == {}
    later = stepper(SmallDetector(), None)
    later.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    restore(state, later)
    assert later.scaler.get_scale() == 8.0


def test_weights_of_another_network_are_a_mistake_of_the_file() -> None:
    other = SmallDetector()
    other.head = torch.nn.Linear(8, 5)
    state = capture(stepper(other, None), step=5, scalars={})
    with pytest.raises(ConfigError, match=r"2 of 9 tensors differ, head.bias first"):
        restore(state, stepper(SmallDetector(), None))
