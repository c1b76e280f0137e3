from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.schema import DataConfig, MixConfig, SplitConfig
from orchestrator.data.augment.mix import Mix, Picture, blend, cut, mosaic
from orchestrator.data.batch import Batch
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.stream.assemble import BatchPlan
from tests.support.data_cases import assert_same_batch, make_plan


def plain(level: int, height: int, width: int, *boxes: list[float]) -> Picture:
    """One grey level, and boxes of the label of that level."""
    return Picture(
        np.full((height, width, 3), level, np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(len(boxes), level),
    )


def test_mosaic_by_hand() -> None:
    pictures = [
        plain(10, 100, 100, [0, 0, 100, 100]),
        plain(20, 50, 100, [0, 0, 50, 50]),  # as wide as fits: half as high
        plain(30, 200, 200, [100, 100, 200, 200]),  # halved
        plain(40, 100, 100, [90, 90, 100, 100]),
    ]
    made = mosaic(pictures, (100, 100), (0.25, 0.5))
    image = made.image[..., 0]
    assert image.shape == (200, 200)
    # The point is at x = 75, y = 100.
    assert (image[:100, :75] == 10).all()
    assert (image[50:100, 75:175] == 20).all()
    assert (image[100:, :75] == 30).all()
    assert (image[100:, 75:175] == 40).all()
    assert (image[:50, 75:] == 114).all()
    assert (image[:, 175:] == 114).all()
    assert made.boxes.tolist() == [
        [0, 0, 75, 100],  # 25 columns are cut off
        [75, 50, 125, 100],
        [25, 150, 75, 200],
        [165, 190, 175, 200],
    ]
    assert made.labels.tolist() == [10, 20, 30, 40]


def test_boxes_of_which_little_is_left_are_dropped() -> None:
    boxes = np.array([[-90, 0, 10, 10], [-91, 0, 9, 10], [20, 20, 30, 30], [-9, 0, 0, 9]])
    seen, keep = cut(boxes.astype(np.float32), (0, 0, 25, 100))
    assert keep.tolist() == [True, False, True, False]
    assert seen.tolist() == [[0, 0, 10, 10], [20, 20, 25, 30]]


def test_blend_by_hand() -> None:
    first = plain(100, 60, 80, [1, 2, 3, 4])
    second = plain(200, 30, 30, [0, 0, 30, 15])
    made = blend(first, second, share=0.75)
    # The second is doubled; to its right the first stays.
    assert (made.image[:, :60] == 125).all()
    assert (made.image[:, 60:] == 100).all()
    assert made.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 60, 30]]
    assert made.labels.tolist() == [100, 200]
    assert (first.image == 100).all()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sides=st.lists(st.tuples(st.integers(4, 90), st.integers(4, 90)), min_size=4, max_size=4),
    centre=st.tuples(st.floats(0, 0.9999), st.floats(0, 0.9999)),
)
def test_boxes_of_a_mosaic_lie_on_their_image(
    seed: int, sides: list[tuple[int, int]], centre: tuple[float, float]
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    pictures = []
    for level, (height, width) in enumerate(sides, start=1):
        ends = np.sort(rng.uniform(0, 1, (3, 2, 2)), axis=1).reshape(3, 4)
        pictures.append(plain(level, height, width, *(ends * ([width, height] * 2)).tolist()))
    made = mosaic(pictures, (40, 60), centre)
    assert made.image.shape == (80, 120, 3)
    for (left, top, right, bottom), label in zip(made.boxes, made.labels, strict=True):
        assert 0 <= left < right <= 120
        assert 0 <= top < bottom <= 80
        # Every pixel that lies wholly in the box is of the image that the box belongs to.
        inner = made.image[
            int(np.ceil(top - 1e-3)) : int(bottom + 1e-3),
            int(np.ceil(left - 1e-3)) : int(right + 1e-3),
        ]
        assert (inner == label).all()


def test_draws_follow_the_probabilities_and_end_with_the_epoch() -> None:
    picture, other = plain(10, 20, 20), plain(200, 20, 20)
    mix = Mix(size=(20, 20), mosaic=0.25, mixup=0.5, until_epoch=3)
    fetched: list[int] = []

    def fetch(number: int) -> Picture:
        fetched.append(number)
        return other

    made = [mix(picture, SampleKey(1, 2, i), 7, fetch) for i in range(600)]
    mosaics = sum(one.image.shape[0] == 40 for one in made)
    blended = sum(bool((one.image[..., 0] == 105).any()) for one in made)
    assert abs(mosaics - 150) < 6 * 10.6  # six standard deviations
    assert abs(blended - 300) < 6 * 12.3
    assert len(fetched) == 3 * mosaics + blended
    assert set(fetched) == set(range(7))
    assert mix(picture, SampleKey(1, 3, 0), 7, fetch) is picture
    assert Mix(size=(20, 20))(picture, SampleKey(1, 0, 0), 7, fetch) is picture


@pytest.mark.parametrize(
    ("options", "images"),
    [({}, 1), ({"mosaic": 0.1}, 4), ({"mixup": 0.1}, 2), ({"mosaic": 1.0, "mixup": 1.0}, 5)],
)
def test_images_of_a_sample(options: dict[str, float], images: int) -> None:
    assert Mix(size=(8, 8), **options).images == images


def test_batches_are_a_function_of_the_step(coco_folder: Path) -> None:
    plan = make_plan(coco_folder)
    mixed = replace(
        plan, mix=Mix(size=plan.input_size, mosaic=1.0, mixup=0.5, until_epoch=1), box_slots=15
    )
    last = plan.schedule.steps_per_epoch
    for step in (0, 3):
        assert_same_batch(mixed.train_batch(step, 0, 1), mixed.train_batch(step, 0, 1))
        plain_images = plan.train_batch(step, 0, 1).images
        assert not np.array_equal(mixed.train_batch(step, 0, 1).images, plain_images)
    halves = [mixed.train_batch(1, rank, 2).images for rank in (0, 1)]
    assert np.array_equal(np.concatenate(halves), mixed.train_batch(1, 0, 1).images)
    # From the second epoch on, it is as if there were none.
    wide: Batch = replace(plan, box_slots=15).train_batch(last, 0, 1)
    assert_same_batch(mixed.train_batch(last, 0, 1), wide)


def test_configuration_makes_room_for_the_boxes(coco_folder: Path) -> None:
    split = SplitConfig(images="images", annotations="instances.json")
    data = make_plan(coco_folder).train
    for mix, slots in ((None, 3), (MixConfig(), 12), (MixConfig(mixup=0.2), 15)):
        plan = BatchPlan.from_config(
            DataConfig(train=split, val=split, mix=mix),
            data,
            data,
            seed=1,
            epochs=1,
            batch_size=2,
            workers=1,
            input_size=(48, 64),
        )
        assert plan.box_slots == slots
    assert plan.mix == Mix(size=(48, 64), mosaic=0.5, mixup=0.2)


def test_bad_partner_is_replaced_like_any_image(coco_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(coco_folder, folder)
    plan = make_plan(folder)
    mixed = replace(plan, mix=Mix(size=plan.input_size, mosaic=1.0), box_slots=12)
    for name in ("000.jpg", "001.jpg", "002.jpg", "003.jpg", "004.jpg", "005.jpg"):
        (folder / "images" / name).write_bytes(b"broken")
    # Each bad image is reported when its own turn comes, and not again as a part of others.
    for step in range(3):
        assert mixed.train_batch(step, 0, 1).replaced == plan.train_batch(step, 0, 1).replaced
