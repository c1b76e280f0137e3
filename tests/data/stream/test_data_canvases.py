"""Batches of one canvas each: which images they hold, for any number of workers and any start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.config.schema import DataConfig, ResizePadAugmentation, SplitConfig
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream
from orchestrator.data.stream.schedule import Schedule, batched_by_canvas
from orchestrator.errors import ConfigError
from tests.support.data_cases import (
    assert_same_batch,
    make_plan,
    textured,
    with_two_canvases,
    write_coco,
    write_image,
)


def test_places_are_collected_by_canvas() -> None:
    canvases = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 1, 0], np.int8)
    # Of eleven places ten are taken: the last of the more frequent canvas, place 10, is not. Each
    # batch is complete with its last place; the last one holds what is left of both.
    assert batched_by_canvas(canvases, 2, 5).reshape(-1, 2).tolist() == [
        [0, 1], [3, 4], [2, 5], [6, 7], [8, 9],
    ]  # fmt: skip


def detectron2(canvases: list[int], batch: int) -> Iterator[list[int]]:
    """Batches of ``AspectRatioGroupedDataset`` in detectron2/data/common.py, and then the rest."""
    buckets: list[list[int]] = [[], []]
    for place, canvas in enumerate(canvases):
        buckets[canvas].append(place)
        if len(buckets[canvas]) == batch:
            yield buckets[canvas]
            buckets[canvas] = []
    if rest := sorted(buckets[0] + buckets[1]):
        yield rest


@pytest.mark.parametrize("seed", range(20))
def test_batches_are_those_of_detectron2(seed: int) -> None:
    rng = np.random.default_rng(seed)
    batch = int(rng.integers(1, 9))
    # All places fill batches, so that nothing is left out.
    canvases = (rng.random(batch * int(rng.integers(1, 30))) < rng.random()).astype(np.int8)
    found = batched_by_canvas(canvases, batch, len(canvases) // batch).reshape(-1, batch)
    assert sorted(found.tolist()) == sorted(detectron2(canvases.tolist(), batch))
    # A batch of both that is complete before the last of the others comes is no exception.
    assert (np.diff(found[:, -1]) > 0).all()


def schedule(n: int, batch: int, higher: NDArray[np.int64], *, epochs: int = 4) -> Schedule:
    canvases = np.zeros(n, np.int8)
    canvases[higher] = 1
    return Schedule(
        seed=5, sample_ids=np.arange(n) * 3 + 1, batch_size=batch, epochs=epochs, canvases=canvases
    )


@pytest.mark.parametrize("rare", [0, 1, 3, 8, 40, 80, 103])
def test_every_image_once_an_epoch_but_for_the_remainder(rare: int) -> None:
    n, batch = 103, 8
    higher = np.random.default_rng(rare).permutation(n)[:rare]
    plan = schedule(n, batch, higher)
    assert plan.steps_per_epoch == n // batch
    of_both, left_out = 0, set()
    for step in range(plan.total_steps):
        ids = plan.samples(step)
        ones = np.isin((ids - 1) // 3, higher).sum()
        assert plan.canvas(step) == int(2 * ones > batch)
        of_both += int(0 < ones < batch)
    for epoch in range(plan.epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.samples(step) for step in steps])
        assert len(set(seen.tolist())) == len(seen) == n // batch * batch
        missing = set(plan.sample_ids.tolist()) - set(seen.tolist())
        # The remainder is of what there is more of.
        assert {(i - 1) // 3 in set(higher.tolist()) for i in missing} == {2 * rare > n}
        left_out |= missing
    assert of_both <= plan.epochs
    # It is another one in each epoch.
    assert len(left_out) > n % batch


def test_an_order_of_its_own_for_each_epoch_and_the_same_for_each_reader() -> None:
    plan = schedule(60, 4, np.arange(0, 60, 3))
    orders = [plan.order(epoch).tolist() for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 4
    again = schedule(60, 4, np.arange(0, 60, 3))
    assert [again.order(epoch).tolist() for epoch in (3, 2, 1, 0)] == orders[::-1]
    for step in range(plan.total_steps):
        for world in (1, 2, 4):
            shares = [plan.rank_samples(step, rank, world) for rank in range(world)]
            assert np.concatenate(shares).tolist() == plan.samples(step).tolist()


def test_visits_go_with_their_samples() -> None:
    plan = replace(schedule(30, 4, np.arange(10)), factors=np.repeat([2.0, 0.5], 15))
    for epoch in range(plan.epochs):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = [
            pair
            for step in steps
            for pair in zip(plan.samples(step).tolist(), plan.visits(step).tolist(), strict=True)
        ]
        assert len(set(seen)) == len(seen) == plan.steps_per_epoch * 4
        assert {visit for _, visit in seen} >= {0, 1}


def test_an_order_without_places_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.order: computed .*detector\.train_canvas"):
        replace(schedule(30, 4, np.arange(10)), computed=True)


@pytest.fixture
def plan(tmp_path: Path) -> BatchPlan:
    write_coco(tmp_path / "data", 21)
    plan = with_two_canvases(make_plan(tmp_path / "data", batch_size=4, epochs=2))
    assert 2 <= int(plan.schedule.canvases.sum()) < 10  # type: ignore[union-attr]
    return plan


@pytest.mark.parametrize("pinned", [False, True])
def test_workers_and_starts_see_the_same_batches(plan: BatchPlan, pinned: bool) -> None:
    whole = list(LocalStream(plan).train_batches(0, 10))
    shapes = {batch.images.shape[1:3] for batch in whole}
    assert shapes == {(48, 64), (64, 48)}
    for world in (1, 2, 4):
        for start in (0, 3, 9):
            for rank in range(world):
                stream = LocalStream(plan, rank=rank, world=world)
                if pinned:
                    stream.allocate = lambda shape, dtype: np.empty(shape, dtype)
                share = slice(rank * 4 // world, (rank + 1) * 4 // world)
                batches = stream.train_batches(start, 10)
                for mine, all_of_it in zip(batches, whole[start:], strict=True):
                    assert np.array_equal(mine.images, all_of_it.images[share])
                    assert np.array_equal(mine.boxes, all_of_it.boxes[share])
                    assert np.array_equal(mine.sample_ids, all_of_it.sample_ids[share])


def test_memory_of_a_turned_batch_is_filled_as_it_lies(plan: BatchPlan) -> None:
    wide = next(s for s in range(10) if plan.schedule.canvas(s) == 0)
    tall = next(s for s in range(10) if plan.schedule.canvas(s) == 1)
    memory = plan.train_batch(wide, 0, 1)
    made = plan.train_batch(tall, 0, 1, memory)
    assert np.may_share_memory(made.images, memory.images)
    assert_same_batch(made, plan.train_batch(tall, 0, 1))


def test_images_are_as_large_on_their_canvas_as_on_the_square_and_have_fewer_pixels(
    tmp_path: Path,
) -> None:
    write_coco(tmp_path, 12)
    # COCO's usual sizes, in turn lying and standing.
    dataset = read_coco(tmp_path / "images", tmp_path / "instances.json").dataset
    sizes = np.array([(480, 640), (640, 480), (427, 640)] * 4, np.int32)
    for name, (height, width) in zip(dataset.files, sizes.tolist(), strict=True):
        write_image(tmp_path / "images" / name, textured(height, width, 1))
    dataset = replace(dataset, heights=sizes[:, 0], widths=sizes[:, 1])
    split = SplitConfig(images="images", annotations="instances.json")
    augmentation = ResizePadAugmentation(
        short_side=800,
        long_side=1333,
        legacy_boxes=False,
        expand_probability=0.0,
        flip_probability=0.0,
    )

    def planned(*canvases: tuple[int, int]) -> BatchPlan:
        return BatchPlan.from_config(
            DataConfig(train=split, val=split, augmentation=augmentation),
            dataset,
            dataset,
            seed=1,
            epochs=1,
            batch_size=4,
            workers=1,
            input_size=(1344, 1344),
            canvases=canvases,
        )

    square, two = planned((1344, 1344)), planned((800, 1344), (1344, 800))
    assert square.schedule.canvases is None
    scales, pixels = [], []
    for plan in (square, two):
        batches = list(LocalStream(plan, prefetch=1).train_batches(0, 3))
        scales.append(
            {
                int(image): transform.tolist()
                for batch in batches
                for image, transform in zip(batch.image_ids, batch.transforms, strict=True)
            }
        )
        pixels.append(sum(int(np.prod(batch.images.shape[:3])) for batch in batches))
        assert len(batches) == 3
    assert pixels == [12 * 1344 * 1344, 12 * 800 * 1344]
    assert scales[0] == scales[1]
    assert two.eval_batch_at(0, 0, 1).images.shape == (4, 1344, 1344, 3)
