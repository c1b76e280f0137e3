"""Scaling of the learning rate by the batch: the rules' arithmetic, and that steps have it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from orchestrator.config.schema import CosineSchedule, SGDOptimizer, TrainConfig
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.digests import config_digest
from orchestrator.tracking.events import metric_history
from orchestrator.training import session
from orchestrator.training.schedules import LearningRate
from orchestrator.training.session import run_rank
from orchestrator.training.verify_sampled import check_sampled
from tests.support.chaos_run import CPU, SmallDetector, small_plan


def config(**changes: object) -> TrainConfig:
    values = {"epochs": 2, "batch_size": 64, "optimizer": SGDOptimizer(lr=0.02), **changes}
    return TrainConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "rate", "text"),
    [
        ({}, 0.02, None),
        (
            {"lr_reference_batch": 16},
            0.08,
            "0.08 = 0.02 x 64 / 16, by train.lr_reference_batch, linear rule",
        ),
        (
            {"lr_reference_batch": 16, "lr_rule": "square_root"},
            0.04,
            "0.04 = 0.02 x sqrt(64 / 16), by train.lr_reference_batch, square root rule",
        ),
        ({"lr_reference_batch": 256}, 0.005, "0.005 = 0.02 x 64 / 256, by "),
    ],
)
def test_the_rules(changes: dict[str, object], rate: float, text: str | None) -> None:
    train = config(**changes)
    assert train.base_rate == pytest.approx(rate, rel=1e-15)
    assert (train.scaling or "").startswith(text or "")
    assert (train.scaling is None) == (text is None)


def test_the_scaled_rate_is_what_the_schedule_and_the_optimizer_have(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "build_detector", lambda *_, **__: SmallDetector())
    words = ("train.optimizer.lr=0.01", "train.lr_reference_batch=2", "train.max_steps=4")
    plan = small_plan(tmp_path / "run", digits, *words)
    run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
    found = [p.value for p in metric_history(plan.job.path / "events.jsonl", "train/lr")]
    # Warm-up of three steps to twice the rate of the file, then a cosine over nine.
    assert found == pytest.approx([0.0, 0.02 / 3, 0.04 / 3, 0.02])


def test_a_sampled_rate_is_compared_as_it_is_scaled(tmp_path: Path, digits: Path) -> None:
    plan = small_plan(tmp_path / "run", digits, "train.lr_reference_batch=2")
    train = plan.job.experiment.train
    job = dataclasses.replace(plan.job, sampled={"train.optimizer.lr": train.optimizer.lr})
    rate = LearningRate(CosineSchedule(), train.base_rate, 3, 6)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate(0))
    optimizer.param_groups[0]["lr_factor"] = 1.0
    check_sampled(job, optimizer, rate, 0)


def test_runs_from_before_the_key_stay_the_same_runs() -> None:
    without = {"train": {"optimizer": {"lr": 0.1}}}
    now = {"train": {**without["train"], "lr_reference_batch": None, "lr_rule": "linear"}}
    assert config_digest(now) == config_digest(without)  # type: ignore[arg-type]
    now["train"]["lr_reference_batch"] = 16  # type: ignore[assignment]
    assert config_digest(now) != config_digest(without)  # type: ignore[arg-type]
