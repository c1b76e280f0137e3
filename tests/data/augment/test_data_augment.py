from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.augmentations import ChainAugmentation, PhotometricAugmentation
from orchestrator.config.schema import (
    M2DetAugmentation,
    NoAugmentation,
    ResizePadAugmentation,
    ScaleJitterAugmentation,
    SSDAugmentation,
)
from orchestrator.data.augment.geometry import Sample, flipped, resized
from orchestrator.data.augment.m2det import M2DetAugment
from orchestrator.data.augment.photometric import Photometric
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.augment.protocol import Augment, build_augment
from orchestrator.data.augment.resize_pad import ResizePad
from orchestrator.data.augment.scale_jitter import ScaleJitter
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.counter_rng import SampleKey
from tests.support.data_cases import textured

LABELS = np.array([4, 2], dtype=np.int64)
BOXES = np.array([[10, 20, 50, 40], [0, 0, 80, 60]], dtype=np.float32)


def whole(size: tuple[int, int] = (60, 80), **changes: object) -> SSDAugment:
    """The augmentation with every random part switched off."""
    options = {
        "size": size,
        "min_ious": (None,),
        "flip_probability": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
    }
    return SSDAugment(**{**options, **changes})


def map_boxes(sample: Sample, boxes: np.ndarray) -> np.ndarray:
    """Original boxes through the sample's transform."""
    sx, sy, tx, ty = sample.transform
    x = np.sort(boxes[:, [0, 2]] * sx + tx, axis=1)
    y = np.sort(boxes[:, [1, 3]] * sy + ty, axis=1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def test_resize_by_hand() -> None:
    sample = resized(textured(60, 80, 0), BOXES, LABELS, (30, 160))
    assert sample.image.shape == (30, 160, 3)
    assert sample.boxes.tolist() == [[20, 10, 100, 20], [0, 0, 160, 30]]
    assert sample.transform == (2.0, 0.5, 0.0, 0.0)


def test_flip_by_hand() -> None:
    sample = flipped(resized(textured(60, 80, 0), BOXES, LABELS, (60, 80)))
    assert sample.boxes.tolist() == [[30, 20, 70, 40], [0, 0, 80, 60]]
    assert sample.transform == (-1.0, 1.0, 80.0, 0.0)
    assert np.array_equal(sample.image, textured(60, 80, 0)[:, ::-1])


def test_flipping_twice_changes_nothing() -> None:
    before = resized(textured(50, 70, 0), BOXES, LABELS, (64, 96))
    after = flipped(flipped(before))
    assert np.array_equal(after.image, before.image)
    assert np.allclose(after.boxes, before.boxes, rtol=0, atol=1e-5)
    assert after.transform == before.transform


@pytest.mark.parametrize(
    "augment",
    [
        SSDAugment(size=(48, 64)),
        SSDAugment(size=(48, 64), saturation=0.0),
        whole((48, 64)),
        M2DetAugment(size=(48, 64)),
        ResizePad(size=(48, 64)),
        ScaleJitter(size=(48, 64)),
        PlainResize(size=(48, 64)),
    ],
)
def test_memory_for_the_image_changes_nothing(augment: Augment) -> None:
    image, used = textured(60, 80, 0), 0
    for number in range(30):
        room = np.full((48, 64, 3), 7, dtype=np.uint8)
        key = SampleKey(1, 0, number)
        made = augment(image, BOXES, LABELS, key)
        there = augment(image, BOXES, LABELS, key, room)
        for name in ("image", "boxes", "labels", "transform"):
            assert np.array_equal(getattr(made, name), getattr(there, name))
        used += there.image is room
    assert np.array_equal(image, textured(60, 80, 0))
    always = isinstance(augment, (SSDAugment, PlainResize)) and augment != whole((48, 64))
    assert used == 30 if always else used < 30
    assert used > 0 or augment == whole((48, 64))


def test_without_randomness_it_is_a_resize() -> None:
    image = textured(60, 80, 0)
    sample = whole((30, 40))(image, BOXES, LABELS, SampleKey(1, 0, 0))
    plain = PlainResize(size=(30, 40))(image, BOXES, LABELS, SampleKey(1, 0, 0))
    assert np.array_equal(sample.image, plain.image)
    assert np.array_equal(sample.boxes, plain.boxes)


def test_boxes_are_rounded_to_whole_pixels_half_to_even() -> None:
    boxes = np.array([[10.5, 20.49, 51.5, 40.51], [3.1, 3.2, 3.4, 30.0]], dtype=np.float32)
    sample = whole()(textured(60, 80, 0), boxes, LABELS, SampleKey(1, 0, 0))
    # The second box would be left without width.
    assert sample.boxes.tolist() == [[10, 20, 52, 41]]
    assert sample.labels.tolist() == [4]


@pytest.mark.parametrize("augment", [SSDAugment(size=(30, 40)), M2DetAugment(size=(30, 40))])
def test_image_without_boxes(augment: Augment) -> None:
    none, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for sample_id in range(20):
        sample = augment(textured(60, 80, 0), none, no_labels, SampleKey(1, 0, sample_id))
        assert sample.boxes.shape == (0, 4)
        assert sample.labels.shape == (0,)
        # Nothing to keep in view, so nothing is cut off, and M2Det leaves it as it is.
        assert abs(sample.transform[0]) == 0.5
        assert isinstance(augment, SSDAugment) or sample.transform == (0.5, 0.5, 0.0, 0.0)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(8, 120),
    width=st.integers(8, 120),
    count=st.integers(1, 6),
)
def test_boxes_stay_inside_and_follow_the_transform(
    seed: int, height: int, width: int, count: int
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    boxes = (ends * [width, height, width, height]).astype(np.float32)
    labels = np.arange(count)
    size = (48, 64)
    sample = SSDAugment(size=size)(textured(height, width, 1), boxes, labels, SampleKey(seed, 1, 2))
    assert sample.image.shape == (48, 64, 3)
    assert sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    assert sample.boxes.min(initial=0) >= 0
    assert (sample.boxes[:, [2, 3]] <= [64, 48]).all()
    expected = map_boxes(sample, np.rint(boxes[sample.labels]).astype(np.float64))
    expected = np.clip(expected, 0, [64, 48, 64, 48])
    assert np.abs(sample.boxes - expected).max(initial=0) < 1e-3


def test_transform_maps_pixels_where_the_image_shows_them() -> None:
    # A picture of its own coordinates: red is x, green is y.
    image = np.zeros((200, 240, 3), dtype=np.uint8)
    image[..., 0] = np.arange(240)
    image[..., 1] = np.arange(200)[:, None]
    boxes = np.array([[40, 40, 200, 160]], dtype=np.float32)
    augment = whole((100, 120), min_ious=(0.1,), flip_probability=0.5)
    flips = 0
    for sample_id in range(40):
        sample = augment(image, boxes, LABELS[:1], SampleKey(3, 0, sample_id))
        sx, sy, tx, ty = sample.transform
        flips += sx < 0
        # Centre of the network pixel (60, 50), in original pixel indices.
        x, y = (60.5 - tx) / sx - 0.5, (50.5 - ty) / sy - 0.5
        assert abs(float(sample.image[50, 60, 0]) - x) < 1.5
        assert abs(float(sample.image[50, 60, 1]) - y) < 1.5
    assert 5 < flips < 35


@pytest.mark.parametrize(
    "augment",
    [
        SSDAugment(size=(48, 64)),
        M2DetAugment(size=(48, 64)),
        ScaleJitter(size=(48, 64)),
        ResizePad(size=(48, 64), expand_probability=1.0),
    ],
)
def test_same_key_same_sample_and_another_key_another_one(augment: Augment) -> None:
    image = textured(60, 80, 0)
    keys = [SampleKey(1, 2, 3), SampleKey(1, 2, 4), SampleKey(1, 3, 3), SampleKey(2, 2, 3)]
    first = [augment(image, BOXES, LABELS, key).image.tobytes() for key in keys]
    second = [augment(image, BOXES, LABELS, key).image.tobytes() for key in keys]
    assert first == second
    assert len(set(first)) == 4


def test_draws_follow_the_configured_probabilities() -> None:
    image = textured(60, 80, 0)
    augment = whole(flip_probability=0.25, min_ious=(None, 0.1))
    samples = [augment(image, BOXES, LABELS, SampleKey(1, 0, i)) for i in range(1000)]
    flips = sum(sample.transform[0] < 0 for sample in samples)
    cropped = sum(abs(sample.transform[0]) > 1.0 for sample in samples)
    assert abs(flips - 250) < 6 * 14  # six standard deviations
    assert abs(cropped - 500) < 6 * 16


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (NoAugmentation(), PlainResize(size=(30, 40))),
        (SSDAugmentation(), SSDAugment(size=(30, 40))),
        (
            SSDAugmentation(crop_attempts=7, crop_overlap_rule="min", contrast=0.1),
            SSDAugment(size=(30, 40), crop_attempts=7, crop_overlap_rule="min", contrast=0.1),
        ),
        (M2DetAugmentation(), M2DetAugment(size=(30, 40))),
        (
            M2DetAugmentation(min_ious=("whole", 0.5), expand_ratio=2.0, fill=(1, 2, 3)),
            M2DetAugment(size=(30, 40), min_ious=("whole", 0.5), expand_ratio=2.0, fill=(1, 2, 3)),
        ),
        (ScaleJitterAugmentation(), ScaleJitter(size=(30, 40), min_scale=0.5, max_scale=2.0)),
        (
            ScaleJitterAugmentation(min_scale=0.1, max_scale=1.9, fill=(124, 116, 104)),
            ScaleJitter(size=(30, 40), min_scale=0.1, max_scale=1.9, fill=(124, 116, 104)),
        ),
    ],
)
def test_built_from_configuration(config: object, expected: object) -> None:
    assert build_augment(config, (30, 40)) == expected


def test_a_list_of_augmentations_is_applied_in_turn() -> None:
    """The last one draws what it draws alone, and the steps draw numbers of their own."""
    image, boxes, labels = textured(60, 80, 0), np.array([[8, 8, 40, 40]], np.float32), LABELS[:1]
    strong = PhotometricAugmentation(brightness=90.0, contrast=0.9)
    last = ResizePadAugmentation(expand_ratio=2.0)
    chain = build_augment(ChainAugmentation(steps=(strong, strong), last=last), (48, 64))
    alone = build_augment(last, (48, 64))
    photometric = Photometric(brightness=90.0, contrast=0.9)
    changed = 0
    for sample in range(20):
        key = SampleKey(3, 1, sample)
        made, whole = chain(image, boxes, labels, key), alone(image, boxes, labels, key)
        assert made.boxes.tolist() == whole.boxes.tolist()
        assert made.transform == whole.transform
        first, *_ = photometric(image, boxes, labels, key.of_stage(1))
        second, *_ = photometric(first, boxes, labels, key.of_stage(2))
        assert np.array_equal(made.image, alone(second, boxes, labels, key).image)
        once, *_ = photometric(image, boxes, labels, key.of_stage(2))
        changed += not np.array_equal(first, once)
    assert changed > 10
    assert chain.plain() == alone.plain()
    assert chain.padding == alone.padding
