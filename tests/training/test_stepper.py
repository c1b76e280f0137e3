"""One optimizer step against plain torch, and what a step that goes wrong must not touch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.structures import Candidates, LossTerm, Targets
from orchestrator.accelerators import Accelerator
from orchestrator.config.schema import (
    AdamWOptimizer,
    EmaConfig,
    ParameterGroup,
    SGDOptimizer,
    TrainConfig,
)
from orchestrator.data.batch import Batch
from orchestrator.training.optim import build_optimizer, parameter_groups
from orchestrator.training.stepper import Stepper
from tests.support.one_step import batch_of, stepper_for


class TinyDetector(Detector):
    """A convolution, a norm and a linear head: all kinds of state a step changes."""

    def __init__(self) -> None:
        super().__init__(
            input_size=(8, 8), num_classes=1, pixel_mean=(0, 0, 0), pixel_std=(255, 255, 255)
        )
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.drop(self.norm(self.conv(self.normalize(images))).relu())
        return {"boxes": self.head(features.mean((2, 3)))}

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        wanted = (targets.boxes * targets.valid.unsqueeze(-1)).sum(1) / 8
        error = (self(images)["boxes"] - wanted).square()
        count = torch.tensor(2 * len(images))
        return {
            "near": LossTerm(error[:, :2].sum(), count),
            "far": LossTerm(error[:, 2:].sum(), count),
        }

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        return Candidates(raw["boxes"][:, None], torch.ones(len(raw["boxes"]), 1, 1))


def _batch(step: int, poison: float | None = None) -> Batch:
    return batch_of(step, side=8, spoilt=poison)


def _config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "epochs": 1,
        "batch_size": 4,
        "optimizer": SGDOptimizer(lr=0.1, momentum=0.9, weight_decay=0.01),
    }
    return TrainConfig(**{**values, **changes})  # type: ignore[arg-type]


def _stepper(config: TrainConfig) -> Stepper:
    torch.manual_seed(0)
    return stepper_for(TinyDetector().train(), config, Accelerator("cpu"))


def _state(stepper: Stepper) -> dict[str, Tensor]:
    state = {f"model/{k}": v.clone() for k, v in stepper.model.state_dict().items()}
    for index, slots in stepper.optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                state[f"optimizer/{index}/{name}"] = value.clone()
    if stepper.average is not None:
        state |= {f"ema/{k}": v.clone() for k, v in stepper.average.tensors.items()}
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_steps_equal_a_plain_torch_loop(accumulate: int) -> None:
    stepper = _stepper(_config(accumulate=accumulate, clip_norm=0.05))
    stepper.model.drop.p = 0.0
    plain = copy.deepcopy(stepper.model)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step, rate in enumerate((0.1, 0.05)):
        batch = _batch(step)
        report = stepper.run(batch, learning_rate=rate, stop=False)
        assert report.applied
        optimizer.zero_grad()
        total = 0.0
        for rows in np.split(np.arange(4), accumulate):
            images = torch.from_numpy(batch.images[rows]).permute(0, 3, 1, 2)
            targets = Targets(
                torch.from_numpy(batch.boxes[rows]),
                torch.from_numpy(batch.labels[rows]),
                torch.from_numpy(batch.valid[rows]),
            )
            loss = sum(plain.loss(images, targets).values()) / accumulate
            loss.backward()
            total += loss.item()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        assert report.losses["loss"] == pytest.approx(total, rel=1e-6)
        assert report.losses["near"] + report.losses["far"] == pytest.approx(total, rel=1e-6)
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
        for (name, ours), theirs in zip(
            stepper.model.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", [SGDOptimizer(lr=0.1, momentum=0.9), AdamWOptimizer(lr=0.01)])
def test_a_bad_step_changes_nothing(poison: float, optimizer: object) -> None:
    config = _config(optimizer=optimizer, ema=EmaConfig(decay=0.9, warmup_steps=0))
    stepper = _stepper(config)
    stepper.run(_batch(0), learning_rate=0.1, stop=False)
    before = _state(stepper)
    report = stepper.run(_batch(1, poison=poison), learning_rate=0.1, stop=False)
    assert not report.applied
    assert not report.overflow
    after = _state(stepper)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert stepper.run(_batch(2), learning_rate=0.1, stop=False).applied


def test_a_poisoned_weight_is_noticed_and_buffers_stay_clean() -> None:
    stepper = _stepper(_config())
    with torch.no_grad():
        stepper.model.conv.weight[0, 0, 0, 0] = float("nan")
    assert not stepper.run(_batch(0), learning_rate=0.1, stop=False).applied
    assert all(torch.isfinite(buffer).all() for buffer in stepper.model.buffers())


def test_randomness_belongs_to_the_step_not_to_the_history() -> None:
    """Dropout of step 3 is the same whether or not steps 0 to 2 ran in this process."""
    first, second = _stepper(_config()), _stepper(_config())
    for step in range(3):
        first.run(_batch(step), learning_rate=0.0, stop=False)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    torch.randn(17)  # A live generator in another state must not matter.
    one = first.run(_batch(3), learning_rate=0.1, stop=False)
    two = second.run(_batch(3), learning_rate=0.1, stop=False)
    assert one.losses == two.losses
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            first.model.state_dict().values(), second.model.state_dict().values(), strict=True
        )
    )


def test_average_follows_its_formula() -> None:
    stepper = _stepper(_config(ema=EmaConfig(decay=0.5, warmup_steps=0)))
    assert stepper.average is not None
    expected = stepper.average.tensors["head.weight"].double()
    for step in range(3):
        stepper.run(_batch(step), learning_rate=0.1, stop=False)
        expected = 0.5 * expected + 0.5 * stepper.model.head.weight.detach().double()
    torch.testing.assert_close(
        stepper.average.tensors["head.weight"].double(), expected, rtol=1e-5, atol=1e-7
    )
    own = stepper.model.head.weight.detach().clone()
    with stepper.average.applied_to(stepper.model):
        assert not torch.equal(stepper.model.head.weight, own)
    assert torch.equal(stepper.model.head.weight, own)


def test_no_decay_groups_hold_norms_and_biases() -> None:
    model = TinyDetector()
    groups = parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=False)
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    together = parameter_groups(model, weight_decay=0.1, decay_norm_and_bias=True)
    assert [len(group["params"]) for group in together] == [6]


def test_a_group_moves_by_its_share_of_the_rate() -> None:
    groups = (
        ParameterGroup(names=("head.*",), lr_factor=0.5),
        ParameterGroup(kind="bias", lr_factor=2.0),
    )
    stepper = _stepper(_config(optimizer=SGDOptimizer(lr=0.1, momentum=0.0, groups=groups)))
    before = {name: value.clone() for name, value in stepper.model.named_parameters()}
    stepper.run(_batch(0), learning_rate=0.04, stop=False)
    rates = {"head.weight": 0.02, "head.bias": 0.02, "conv.bias": 0.08, "conv.weight": 0.04}
    for name, rate in rates.items():
        parameter = stepper.model.get_parameter(name)
        assert parameter.grad is not None
        expected = before[name] - rate * parameter.grad
        torch.testing.assert_close(parameter.detach(), expected.detach(), msg=name)


def test_adamw_gets_what_the_file_says() -> None:
    optimizer = build_optimizer(
        TinyDetector(), AdamWOptimizer(lr=0.02, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    )
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert optimizer.defaults["eps"] == 1e-6
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.3}


def test_a_stop_request_is_reported_with_the_finished_step() -> None:
    stepper = _stepper(_config())
    report = stepper.run(_batch(0), learning_rate=0.1, stop=True)
    assert report.applied
    assert report.stop
