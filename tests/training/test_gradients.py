"""Gradient buckets: fixed layout, sum over ranks, clipping, unused parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.training.collective import Collective
from orchestrator.training.gradients import Gradients
from tests.support.ranks import run_ranks


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1))


def _rank(rank: int, folder: Path, world: int) -> None:
    model = _model()
    gradients = Gradients(
        list(model.parameters()), Collective(torch.device("cpu")), bucket_bytes=64
    )
    torch.manual_seed(100)
    inputs = torch.randn(2 * world, 7)[2 * rank : 2 * rank + 2]
    for _ in range(2):  # A second step must not see the first one's sums.
        gradients.zero()
        model(inputs[:1]).pow(2).sum().backward()
        gradients.expect_last()
        model(inputs[1:]).pow(2).sum().backward()
        gradients.finish()
    torch.save([p.grad.clone() for p in model.parameters()], folder / f"grads-{rank}.pt")


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sum_over_ranks_equals_one_big_batch(world: int, tmp_path: Path) -> None:
    run_ranks(_rank, tmp_path, world, count=world)
    model = _model()
    torch.manual_seed(100)
    model(torch.randn(2 * world, 7)).pow(2).sum().backward()
    expected = [p.grad for p in model.parameters()]
    for rank in range(world):
        for ours, theirs in zip(torch.load(tmp_path / f"grads-{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_norm_and_clipping_match_torch() -> None:
    model = _model()
    gradients = Gradients(list(model.parameters()), Collective(torch.device("cpu")))
    gradients.zero()
    (1e3 * model(torch.ones(4, 7)).sum()).backward()
    copies = [p.grad.clone() for p in model.parameters()]
    reference = [nn.Parameter(torch.zeros_like(c)) for c in copies]
    for parameter, copy in zip(reference, copies, strict=True):
        parameter.grad = copy
    norm = gradients.norm()
    expected = nn.utils.clip_grad_norm_(reference, 2.5)
    torch.testing.assert_close(norm, expected)
    gradients.clip_(norm, 2.5)
    for parameter, other in zip(model.parameters(), reference, strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_unused_parameters_count_as_zero_and_infinity_shows_in_the_norm() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    gradients = Gradients([used, unused], Collective(torch.device("cpu")))
    gradients.zero()
    used.sum().backward()
    gradients.finish()
    assert unused.grad is not None
    assert unused.grad.tolist() == [0.0, 0.0]
    assert gradients.norm() == pytest.approx(3**0.5)
    (used.sum() * float("inf")).backward()
    assert not torch.isfinite(gradients.norm())
