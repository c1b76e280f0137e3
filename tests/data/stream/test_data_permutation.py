"""The computed permutation is one, is fair, and gives the batches of its whole order."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import DataConfig, Experiment, SplitConfig
from orchestrator.data.stream.permutation import mixed_within, permuted
from orchestrator.data.stream.sampling import SampleIds
from orchestrator.data.stream.schedule import Schedule


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10_000), n=st.integers(1, 300))
def test_it_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    whole = permuted(seed, epoch, n, np.arange(n))
    assert sorted(whole.tolist()) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    assert permuted(seed, epoch, n, some).tolist() == whole[some].tolist()


def test_one_round_by_hand_written_integers() -> None:
    """The same network in Python's integers, for one key."""
    from orchestrator.data.counter_rng import Domain, words

    keys = words(5, Domain.ORDER, epoch=3, stage=1, count=8).tolist()
    mask64 = (1 << 64) - 1

    def mixed(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask64
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask64
        return x ^ (x >> 31)

    def feistel(x: int) -> int:
        left, right = x >> 5, x & 31
        for key in keys:
            left, right = right, left ^ (mixed(right ^ key) >> 59)
        return (left << 5) | right

    def walked(x: int) -> int:
        x = feistel(x)
        while x >= 700:
            x = feistel(x)
        return x

    assert permuted(5, 3, 700, np.arange(700)).tolist() == [walked(x) for x in range(700)]


@pytest.mark.parametrize("place", [0, 4])
def test_every_place_is_fair(place: int) -> None:
    found = Counter(int(permuted(1, epoch, 5, np.array([place]))[0]) for epoch in range(2000))
    # Expected 400 each; six standard deviations are 107.
    assert all(abs(found[i] - 400) < 107 for i in range(5))


def test_neighbours_go_apart() -> None:
    n = 100_000
    order = permuted(1, 0, n, np.arange(n))
    # Of random permutations: mean distance n / 3, and one fixed point.
    assert abs(np.abs(np.diff(order)).mean() / (n / 3) - 1) < 0.02
    assert (order == np.arange(n)).sum() < 8
    other = permuted(1, 1, n, np.arange(n))
    assert abs(np.corrcoef(order, other)[0, 1]) < 0.02


def test_a_schedule_computes_its_steps() -> None:
    plan = Schedule(seed=3, sample_ids=np.arange(23) * 3 + 1, batch_size=4, epochs=3, computed=True)
    for epoch in range(3):
        whole = plan.order(epoch)
        assert sorted(whole.tolist()) == list(range(23))
        for step in range(5):
            expected = plan.sample_ids[whole[4 * step : 4 * step + 4]]
            assert plan.samples(epoch * 5 + step).tolist() == expected.tolist()
            shares = [plan.rank_samples(epoch * 5 + step, rank, 2) for rank in (0, 1)]
            assert np.concatenate(shares).tolist() == expected.tolist()
    assert plan.order(0).tolist() != plan.order(1).tolist()


def test_a_step_of_a_billion_images_takes_no_memory() -> None:
    places = np.arange(10**9 - 64, 10**9)
    found = permuted(1, 2, 10**9, places)
    assert len(set(found.tolist())) == 64
    assert found.max() < 10**9


@given(seed=st.integers(0, 2**64 - 1), n=st.integers(1, 200), window=st.integers(1, 260))
def test_a_window_is_a_permutation_that_moves_nothing_far(seed: int, n: int, window: int) -> None:
    whole = mixed_within(seed, 4, n, window, np.arange(n))
    assert sorted(whole.tolist()) == list(range(n))
    assert np.abs(whole - np.arange(n)).max() < max(1, window)
    some = np.arange(n)[:: max(1, n // 7)]
    assert mixed_within(seed, 4, n, window, some).tolist() == whole[some].tolist()


def test_a_window_has_no_border_that_nothing_crosses_and_no_block_like_another() -> None:
    n, window = 4000, 40
    whole = mixed_within(1, 0, n, window, np.arange(n))
    # At every place but the ends something comes from before and goes behind it.
    reach = np.maximum.accumulate(whole)
    assert (reach[:-1] > np.arange(n - 1)).mean() > 0.99
    blocks = (whole - np.arange(n)).reshape(-1, window)
    assert len(np.unique(blocks, axis=0)) == len(blocks)
    assert whole.tolist() != mixed_within(1, 1, n, window, np.arange(n)).tolist()


@pytest.mark.parametrize("without_table", [False, True])
def test_a_computed_window_reads_shard_after_shard(without_table: bool) -> None:
    left_out = np.array([0, 5, 6, 41])
    ids = np.setdiff1d(np.arange(100), left_out)
    plan = Schedule(
        seed=3,
        sample_ids=SampleIds(100, left_out) if without_table else ids,
        batch_size=4,
        epochs=2,
        window=12,
        bounds=np.array([0, 5, 7, 30, 60, 100]),
        computed=True,
    )
    for epoch in range(2):
        whole = ids[plan.order(epoch)]
        assert sorted(whole.tolist()) == ids.tolist()
        steps = [plan.samples(epoch * 24 + step) for step in range(24)]
        assert np.concatenate(steps).tolist() == whole.tolist()
        # A window's length from its first image to its last one, a shard has all of its images.
        shard = np.searchsorted(plan.bounds, whole, side="right")
        for number in np.unique(shard):
            places = np.flatnonzero(shard == number)
            assert np.ptp(places) < len(places) + 2 * 12
        partners = plan.partners(epoch * 24 + 10)
        assert np.asarray(partners).tolist() == whole[36:48].tolist()


@pytest.mark.parametrize("workers", [8, 4])
def test_lanes_go_through_shards_of_their_own(workers: int) -> None:
    """Workers of as many nodes: each reads a part of the shards, and all of them every image."""
    n, per = 20_000, 50
    plan = Schedule(
        seed=3,
        sample_ids=np.arange(n),
        batch_size=64,
        epochs=1,
        window=800,
        bounds=np.arange(0, n + 1, per),
        computed=True,
        lanes=8,
    )
    whole = plan.order(0)
    assert sorted(whole.tolist()) == list(range(n))
    steps = range(plan.steps_per_epoch)
    assert np.array_equal(
        np.concatenate([plan.samples(s) for s in steps]), whole[: 64 * len(steps)]
    )
    read = [
        {int(i) // per for s in steps for i in plan.rank_samples(s, rank, workers)}
        for rank in range(workers)
    ]
    # Besides its part, a lane sees some of what lies a window's part before and behind it.
    most = n // per // workers + 2 * (800 // 8 // per + 1)
    assert max(map(len, read)) <= most
    # What a step and the next ones need at a time fits what a node is said to keep.
    near = {int(i) // per for s in range(100, 103) for i in plan.samples(s)}
    assert len(near) <= (plan.shards_in_reach or 0)
    alike = dataclasses.replace(plan, lanes=1)
    assert alike.samples(5).tolist() != plan.samples(5).tolist()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"lanes": 4}, "lanes go with data.order: computed and a data.window"),
        ({"lanes": 4, "order": "computed"}, "lanes go with data.order: computed and a data.window"),
    ],
)
def test_lanes_without_a_computed_window_are_refused(
    words: dict[str, object], problem: str
) -> None:
    split = SplitConfig(shards="a")
    with pytest.raises(ValueError, match=problem):
        DataConfig(train=split, val=split, **words)


def test_lanes_divide_a_batch() -> None:
    tree: dict[str, Any] = {
        "name": "a",
        "detector": {"name": "ssd"},
        "data": {
            "train": {"shards": "a"},
            "val": {"shards": "b"},
            "order": "computed",
            "window": 64,
            "lanes": 3,
        },
        "train": {"epochs": 1, "batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.1}},
    }
    with pytest.raises(ValueError, match=r"data\.lanes is 3, which does not divide .* 8"):
        Experiment.model_validate(tree)
    Experiment.model_validate({**tree, "train": {**tree["train"], "batch_size": 9}})


def test_visits_that_are_not_one_each_are_refused() -> None:
    split = SplitConfig(images="a", annotations="b")
    with pytest.raises(ValueError, match="computed visits every image once"):
        DataConfig(train=split, val=split, order="computed", weight=2.0)
