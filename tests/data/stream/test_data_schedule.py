from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.counter_rng import Domain, words
from orchestrator.data.stream.schedule import Schedule, eval_slots, order
from orchestrator.errors import ConfigError, DataError


def schedule(n: int = 23, batch_size: int = 4, epochs: int = 5, seed: int = 1) -> Schedule:
    """Over ids that are not positions, so that the two cannot be mixed up."""
    return Schedule(
        seed=seed, sample_ids=np.arange(n) * 3 + 1, batch_size=batch_size, epochs=epochs
    )


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10_000), n=st.integers(0, 200))
def test_order_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    permutation = order(seed, epoch, n)
    assert permutation.dtype == np.int64
    assert sorted(permutation.tolist()) == list(range(n))


def test_order_sorts_one_word_per_position() -> None:
    keys = words(7, Domain.ORDER, epoch=2, count=50).tolist()
    assert order(7, 2, 50).tolist() == sorted(range(50), key=keys.__getitem__)


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {tuple(order(seed, epoch, 30).tolist()) for seed in (1, 2) for epoch in range(5)}
    assert len(orders) == 10


def test_first_place_is_fair() -> None:
    firsts = Counter(int(order(1, epoch, 5)[0]) for epoch in range(2000))
    # Expected 400 each; six standard deviations are 107.
    assert all(abs(firsts[i] - 400) < 107 for i in range(5))


def test_epoch_visits_each_sample_at_most_once_and_drops_the_remainder() -> None:
    plan = schedule()
    assert plan.steps_per_epoch == 5
    assert plan.total_steps == 25
    left_out = []
    for epoch in range(plan.epochs):
        steps = range(epoch * 5, epoch * 5 + 5)
        assert all(plan.epoch_of(step) == epoch for step in steps)
        seen = [i for step in steps for i in plan.samples(step).tolist()]
        assert len(set(seen)) == len(seen) == 20
        assert set(seen) < set(plan.sample_ids.tolist())
        left_out.append(frozenset(plan.sample_ids.tolist()) - set(seen))
    assert len(set(left_out)) > 1


def test_samples_are_consecutive_positions_of_the_order() -> None:
    plan = schedule()
    permutation = order(plan.seed, 2, 23)
    assert plan.samples(2 * 5 + 3).tolist() == plan.sample_ids[permutation[12:16]].tolist()


def test_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size = 4 .* cluster.workers = 3"):
        schedule().rank_samples(0, 0, 3)


@pytest.mark.parametrize("step", [-1, 25])
def test_step_outside_the_run_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} is outside 0..24"):
        schedule().samples(step)


def test_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is outside"):
        schedule().rank_samples(0, 2, 2)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "no image has a box to learn from"),
        (1, "1 usable image, but one step takes train.batch_size = 4"),
        (3, "set train.batch_size to at most 3"),
    ],
)
def test_too_few_images_for_a_batch_are_refused(n: int, text: str) -> None:
    with pytest.raises(DataError, match=text):
        schedule(n=n)


def test_seed_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed is"):
        schedule(seed=1 << 64)


def test_a_batch_as_large_as_the_set_is_one_step() -> None:
    plan = schedule(n=4)
    assert plan.steps_per_epoch == 1
    assert sorted(plan.samples(3).tolist()) == [1, 4, 7, 10]


@given(n=st.integers(1, 60), world=st.integers(1, 5), batch=st.integers(1, 7))
def test_every_image_is_evaluated_exactly_once(n: int, world: int, batch: int) -> None:
    ranks = [eval_slots(n, rank, world, batch) for rank in range(world)]
    assert len({slots.shape for slots in ranks}) == 1
    real = np.concatenate([slots.ravel() for slots in ranks])
    real = real[real >= 0]
    assert sorted(real.tolist()) == list(range(n))
    sizes = [int((slots >= 0).sum()) for slots in ranks]
    assert max(sizes) - min(sizes) <= 1


def test_eval_slots_by_hand() -> None:
    assert eval_slots(7, 0, 2, 3).tolist() == [[0, 2, 4], [6, -1, -1]]
    assert eval_slots(7, 1, 2, 3).tolist() == [[1, 3, 5], [-1, -1, -1]]
