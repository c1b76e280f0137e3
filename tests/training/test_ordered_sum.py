"""Sums in slices against additions one after the other, bit for bit, on several ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orchestrator.training.collective import Collective
from orchestrator.training.gradients import Gradients
from orchestrator.training.ordered_sum import OrderedSum
from tests.support.ranks import run_ranks

#: Sizes that no number of ranks divides, and one smaller than the ranks are many.
SIZES = (1001, 3, 1)


def contribution(shard: int, size: int) -> Tensor:
    """Numbers of all magnitudes, whose sum depends on the order; zeros of both signs among them."""
    generator = torch.Generator().manual_seed(100 * shard + size)
    found = torch.randn(size, generator=generator) * 10.0 ** (shard % 5 - 2)
    found[::7] = -0.0
    return found


def one_after_the_other(shards: int, size: int) -> Tensor:
    total = torch.zeros(size)
    for shard in range(shards):
        total = total + contribution(shard, size)
    return total


def same_bits(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), two.view(torch.int32))


class Plain(nn.Module):
    """Parameters whose gradients are what is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in SIZES])

    def backward(self, shard: int) -> None:
        products = [w * contribution(shard, len(w)) for w in self.weights]
        torch.cat(products).sum().backward()


def check(collective: Collective, each: int) -> None:
    world, first = collective.world, collective.rank * each
    wanted = [one_after_the_other(world * each, size) for size in SIZES]
    like = [torch.zeros(size) for size in SIZES]
    ordered = OrderedSum(like, collective)
    model = Plain()
    gradients = Gradients(list(model.parameters()), collective, ordered=True, bucket_bytes=16)
    assert len(gradients.buckets) > 1
    for _ in range(2):  # A second step must not see the first one's sums.
        for shard in range(first, first + each):
            ordered.add([contribution(shard, size) for size in SIZES])
            gradients.zero()
            gradients.expect_last(last_shard=shard == first + each - 1)
            model.backward(shard)
            gradients.end_shard()
        ordered.finish(like)
        gradients.finish()
        for found, weight, total in zip(like, model.weights, wanted, strict=True):
            assert same_bits(found, total)
            assert weight.grad is not None
            assert same_bits(weight.grad, total)


def _rank(_: int, __: Path) -> None:
    for each in (1, 3):
        check(Collective(torch.device("cpu")), each)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_add_in_the_order_of_the_shards(world: int, tmp_path: Path) -> None:
    run_ranks(_rank, tmp_path, count=world)


def test_so_does_one_rank_alone() -> None:
    for each in (2, 6):
        check(Collective(torch.device("cpu")), each)


def test_the_order_matters() -> None:
    """Otherwise the tests above would prove nothing."""
    backwards = torch.zeros(SIZES[0])
    for shard in reversed(range(6)):
        backwards = backwards + contribution(shard, SIZES[0])
    assert not same_bits(backwards, one_after_the_other(6, SIZES[0]))
