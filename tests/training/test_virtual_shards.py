"""The same bits from one, two and four workers, when a batch is computed in fixed parts."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from detectors.structures import Targets
from orchestrator.config.schema import SGDOptimizer, TrainConfig
from orchestrator.errors import ConfigError
from orchestrator.tracking.events import metric_history
from orchestrator.training.collective import Collective
from orchestrator.training.ordered_sum import OrderedSum
from tests.support.chaos_run import CPU, Chaos, SmallDetector, digests
from tests.support.one_step import batch_of, stepper_for

STEPS = 6


def sharded(folder: Path, digits: Path, world: int, *more: str) -> Chaos:
    overrides = (f"cluster.workers={world}", "train.batch_size=8", "train.virtual_shards=4", *more)
    return Chaos(folder, digits, *overrides)


def test_one_two_and_four_workers_end_in_the_same_bits(tmp_path: Path, digits: Path) -> None:
    runs = {world: sharded(tmp_path / f"{world}", digits, world) for world in (1, 2, 4)}
    for world, run in runs.items():
        assert run.run() == [0] * world
    found = {world: digests(run.run_dir) for world, run in runs.items()}
    assert sorted(found[1]) == list(range(1, STEPS + 1))
    assert found[1] == found[2] == found[4]
    for key in ("train/loss", "train/gradient_norm", "val/AP"):
        logs = [metric_history(run.run_dir / "events.jsonl", key) for run in runs.values()]
        values = [[(point.step, point.value) for point in log] for log in logs]
        assert values[0] == values[1] == values[2], key


def test_the_number_of_workers_may_change_on_the_way(tmp_path: Path, digits: Path) -> None:
    whole = sharded(tmp_path / "whole", digits, 2)
    assert whole.run() == [0, 0]
    for world, until in ((4, 2), (1, 4), (2, STEPS)):
        run = sharded(tmp_path / "changing", digits, world, f"train.max_steps={until}")
        assert run.run() == [0] * world
        run.books.folder.rename(tmp_path / f"books-{world}")
    expected = digests(whole.run_dir)
    assert digests(run.run_dir)[STEPS] == expected[STEPS]


def test_without_them_the_number_of_workers_shows(tmp_path: Path, digits: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    last = []
    for world in (1, 2):
        run = sharded(tmp_path / f"{world}", digits, world, "train.virtual_shards=null")
        assert run.run() == [0] * world
        last.append(digests(run.run_dir)[STEPS])
    assert last[0] != last[1]


def test_a_sharded_step_is_that_of_plain_torch() -> None:
    """Mean gradient over the shards; statistics are the mean of what each makes of the old ones."""
    torch.manual_seed(0)
    model = SmallDetector().train()
    model.drop.p = 0.0
    plain = copy.deepcopy(model)
    config = TrainConfig(
        epochs=1, batch_size=4, optimizer=SGDOptimizer(lr=0.1, momentum=0.0), virtual_shards=2
    )
    stepper, batch = stepper_for(model, config, CPU), batch_of(0)
    report = stepper.run(batch, learning_rate=0.1, stop=False)
    norms = []
    total = 0.0
    for rows in (slice(0, 2), slice(2, 4)):
        shard = copy.deepcopy(plain)
        images = torch.from_numpy(batch.images[rows]).permute(0, 3, 1, 2)
        arrays = (batch.boxes[rows], batch.labels[rows], batch.valid[rows])
        loss = sum(shard.loss(images, Targets(*map(torch.from_numpy, arrays))).values()) / 2
        loss.backward()
        total += loss.item()
        norms.append(shard.norm)
        for parameter, own in zip(plain.parameters(), shard.parameters(), strict=True):
            parameter.grad = own.grad + (0.0 if parameter.grad is None else parameter.grad)
    for parameter in plain.parameters():
        parameter.data -= 0.1 * parameter.grad
    assert report.losses["loss"] == pytest.approx(total, rel=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, msg=name)
    norm = model.norm
    assert isinstance(norm, nn.BatchNorm2d)
    mean = (norms[0].running_mean + norms[1].running_mean) / 2
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    variance = (norms[0].running_var + norms[1].running_var) / 2
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 1
    # Constants do not drift, as a mean of equal numbers would let them.
    assert torch.equal(model.pixel_std, torch.full((1, 3, 1, 1), 255.0))


def test_the_order_of_the_sum_is_that_of_the_shards() -> None:
    """1e8 + 1 - 1e8 in float32: 0 from the left; 1 in the order 1e8 - 1e8 + 1."""
    total = OrderedSum([torch.zeros(1)], Collective(torch.device("cpu")))
    for order, expected in (((1e8, 1.0, -1e8), 0.0), ((1e8, -1e8, 1.0), 1.0)):
        for value in order:
            total.add([torch.tensor([value])])
        found = torch.full((1,), 7.0)
        total.finish([found])
        assert found.item() == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.virtual_shards=3",), "must divide train.batch_size, which is 8"),
        (("cluster.workers=8",), "must be divisible by cluster.workers, which is 8"),
        (("train.accumulate=2",), "remove train.accumulate"),
    ],
)
def test_what_does_not_divide_is_refused(
    overrides: tuple[str, ...], message: str, tmp_path: Path, digits: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        sharded(tmp_path / "run", digits, 1, *overrides)
