"""The order in which shards are read: a pure function, a permutation, and never far from home."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, uniforms, words
from orchestrator.data.stream.schedule import Schedule, order, windowed_order

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=12)


def shards_of(sizes: list[int]) -> NDArray[np.int64]:
    return np.repeat(np.arange(len(sizes)), sizes)


def schedule(
    n: int = 200, per: int = 16, window: int | None = 40, batch: int = 8, seed: int = 1
) -> Schedule:
    """Every third image takes part, so that positions and ids cannot be mixed up."""
    return Schedule(
        seed=seed,
        sample_ids=np.arange(n) * 3 + 1,
        batch_size=batch,
        epochs=3,
        window=window,
        bounds=np.append(np.arange(0, 3 * n, per), 3 * n),
    )


@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 99),
    sizes=SIZES,
    window=st.integers(1, 400),
)
def test_it_is_a_permutation(seed: int, epoch: int, sizes: list[int], window: int) -> None:
    found = windowed_order(seed, epoch, shards_of(sizes), window)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(sum(sizes)))


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 99), sizes=SIZES)
def test_window_of_one_reads_shard_after_shard(seed: int, epoch: int, sizes: list[int]) -> None:
    found = windowed_order(seed, epoch, shards_of(sizes), 1)
    keys = words(seed, Domain.SHARDS, epoch=epoch, count=len(sizes)).tolist()
    starts = np.cumsum([0, *sizes])
    expected = [
        int(starts[shard]) + place
        for shard in sorted(range(len(sizes)), key=keys.__getitem__)
        for place in range(sizes[shard])
    ]
    if sum(sizes) > 1:
        assert found.tolist() == expected


@given(
    seed=st.integers(0, 2**32), epoch=st.integers(0, 99), sizes=SIZES, window=st.integers(1, 100)
)
def test_nothing_moves_as_far_as_the_window(
    seed: int, epoch: int, sizes: list[int], window: int
) -> None:
    shard = shards_of(sizes)
    if window >= len(shard):
        return
    laid_out = np.empty(len(shard), dtype=np.int64)
    laid_out[windowed_order(seed, epoch, shard, 1)] = np.arange(len(shard))
    place = laid_out[windowed_order(seed, epoch, shard, window)]
    assert np.abs(place - np.arange(len(shard))).max() < window
    # What has been read ahead and not been used is never more than the window.
    read = np.maximum.accumulate(place) + 1
    assert (read - np.arange(1, len(shard) + 1)).max() < window


@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 99), sizes=SIZES)
def test_window_of_everything_is_the_order_without_shards(
    seed: int, epoch: int, sizes: list[int]
) -> None:
    n = sum(sizes)
    assert (
        windowed_order(seed, epoch, shards_of(sizes), n).tolist() == order(seed, epoch, n).tolist()
    )


def test_by_hand() -> None:
    """The definition in plain Python, float arithmetic included."""
    sizes, window, seed, epoch = [3, 2, 4], 4, 7, 2
    keys = words(seed, Domain.SHARDS, epoch=epoch, count=3).tolist()
    drawn = uniforms(seed, Domain.ORDER, epoch=epoch, count=9).tolist()
    starts = [0, 3, 5]
    sequence = [
        starts[shard] + place
        for shard in sorted(range(3), key=keys.__getitem__)
        for place in range(sizes[shard])
    ]
    expected = sorted(sequence, key=lambda i: sequence.index(i) + window * drawn[i])
    assert windowed_order(seed, epoch, shards_of(sizes), window).tolist() == expected


def test_epochs_and_seeds_differ_in_shards_and_within() -> None:
    shard = shards_of([20] * 10)
    orders = [windowed_order(seed, epoch, shard, 30) for seed in (1, 2) for epoch in range(4)]
    assert len({tuple(found.tolist()) for found in orders}) == 8
    assert len({tuple(dict.fromkeys((found // 20).tolist())) for found in orders}) == 8


@pytest.mark.parametrize("window", [None, 1, 40, 10_000])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_has_the_same_samples_for_any_number_of_workers(
    world: int, window: int | None
) -> None:
    plan = schedule(window=window)
    for step in range(plan.total_steps):
        shares = [plan.rank_samples(step, rank, world) for rank in range(world)]
        assert all(len(share) == plan.batch_size // world for share in shares)
        assert np.concatenate(shares).tolist() == plan.samples(step).tolist()
    for epoch in range(3):
        steps = range(epoch * 25, epoch * 25 + 25)
        seen = np.concatenate([plan.samples(step) for step in steps])
        assert sorted(seen.tolist()) == plan.sample_ids.tolist()


def test_any_step_is_the_same_in_a_process_that_begins_there() -> None:
    whole = schedule()
    expected = [whole.samples(step).tolist() for step in range(whole.total_steps)]
    for step in (0, 1, 24, 25, 49, 74):
        again = schedule()
        assert again.samples(step).tolist() == expected[step]


def test_another_process_finds_the_same_order() -> None:
    code = (
        "import numpy as np; from orchestrator.data.stream.schedule import windowed_order as w; "
        "print(w(3, 5, np.repeat(np.arange(9), 100), 250).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    here = windowed_order(3, 5, np.repeat(np.arange(9), 100), 250)
    assert done.stdout.strip() == str(here.tolist())


@pytest.mark.parametrize(("rare", "reach"), [(0.0, 15), (0.1, 19)])
def test_steps_that_are_close_need_few_shards(rare: float, reach: int) -> None:
    """A batch of one image in ten is collected from 80 places, of 20 a shard."""
    plan = schedule(n=2000, per=60, window=100)
    if rare:
        higher = np.random.default_rng(1).permutation(2000) < rare * 2000
        plan = replace(plan, canvases=higher.astype(np.int8))
    assert plan.shards_in_reach == reach + 8
    for epoch in range(3):
        steps = range(epoch * 250, epoch * 250 + 250)
        shards = [set((plan.samples(step) // 60).tolist()) for step in steps]
        partners = [set((plan.partners(step) // 60).tolist()) for step in steps]
        for first in range(0, 250, 5):
            near = set().union(*shards[first : first + 8], *partners[first : first + 8])
            assert len(near) <= plan.shards_in_reach


def test_partners_are_around_the_step() -> None:
    plan = schedule()
    for step in (0, 3, 12, 24, 25):
        pool = plan.partners(step)
        assert len(pool) == 40
        assert set(plan.samples(step).tolist()) <= set(pool.tolist())
    for everything in (schedule(window=None), schedule(window=200)):
        assert everything.partners(3) is everything.sample_ids


def test_a_million_rows_start_in_seconds_and_little_memory() -> None:
    """1,954 shards of 512: the first batch and one from the middle of another epoch."""
    code = (
        "import resource, time; import numpy as np; "
        "from orchestrator.data.stream.schedule import Schedule; "
        "n = 1_000_000; ids = np.arange(n); "
        "bounds = np.append(np.arange(0, n, 512), n); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "begin = time.process_time(); "
        "plan = Schedule(seed=1, sample_ids=ids, batch_size=64, epochs=2, window=16384, "
        "bounds=bounds); "
        "plan.samples(0); first = time.process_time() - begin; "
        "plan.samples(plan.steps_per_epoch + 7777); "
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "print(first, (after - before) / 1024, plan.shards_in_reach)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    seconds, megabytes, shards = map(float, done.stdout.split())
    assert seconds < 5
    assert megabytes < 150
    assert shards == 105
