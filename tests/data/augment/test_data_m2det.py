from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from orchestrator.config.schema import M2DetAugmentation
from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.m2det import INTERPOLATIONS, M2DetAugment
from orchestrator.data.augment.patches import (
    ATTEMPTS,
    DRAWS_PER_ATTEMPT,
    crop_with_iou,
    expanded,
)
from orchestrator.data.augment.photometric import DRAWS, distort, scaled
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.counter_rng import Domain, SampleKey
from tests.support.data_cases import textured

BOXES = np.array([[10, 20, 50, 40], [0, 0, 80, 60]], dtype=np.float32)
LABELS = np.array([4, 2])


def still(size: tuple[int, int] = (60, 80), **changes: object) -> M2DetAugment:
    """The augmentation with every random part but the interpolation switched off."""
    options = {
        "size": size,
        "min_ious": ("whole",),
        "brightness": 0.0,
        "contrast": 0.0,
        "hue": 0,
        "saturation": 0.0,
        "expand_probability": 0.0,
        "flip_probability": 0.0,
    }
    return M2DetAugment(**{**options, **changes})


def map_boxes(sample: Sample, boxes: np.ndarray) -> np.ndarray:
    """Original boxes through the sample's transform."""
    sx, sy, tx, ty = sample.transform
    x = np.sort(boxes[:, [0, 2]] * sx + tx, axis=1)
    y = np.sort(boxes[:, [1, 3]] * sy + ty, axis=1)
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def test_crop_by_hand() -> None:
    # Scale 0.3 + 0.7 * 0.5 = 0.65; its aspect is between 0.5 and 2 and, half-way, 1.25: the square
    # root is 1.118. 0.65 * 1.118 * 200 = 145.3 wide, 0.65 / 1.118 * 100 = 58.1 high.
    draws = np.array([0.5, 0.5, 0.5, 0.25])
    boxes = np.array([[30, 12, 170, 66]], dtype=np.float32)
    rect = crop_with_iou(boxes, (100, 200), draws, min_iou=0.5, min_scale=0.3)
    # 55 columns and 42 rows are left: half and a quarter of them.
    assert rect == (27, 10, 172, 68)
    # IoU = 140 * 54 / (145 * 58) = 0.899
    assert crop_with_iou(boxes, (100, 200), draws, min_iou=0.89, min_scale=0.3) is not None
    assert crop_with_iou(boxes, (100, 200), draws, min_iou=0.9, min_scale=0.3) is None


def test_crop_is_bound_by_the_box_that_overlaps_least() -> None:
    draws = np.array([0.5, 0.5, 0.5, 0.25])
    boxes = np.array([[30, 12, 170, 66], [0, 80, 9, 90]], dtype=np.float32)
    assert crop_with_iou(boxes, (100, 200), draws, min_iou=0.1, min_scale=0.3) is None
    free = crop_with_iou(boxes, (100, 200), draws, min_iou=-np.inf, min_scale=0.3)
    assert free == (27, 10, 172, 68)


def test_crop_needs_a_centre_strictly_inside() -> None:
    draws = np.array([0.5, 0.5, 0.5, 0.25])
    size = (100, 200)
    for x, expected in ((26, None), (27, None), (28, (27, 10, 172, 68))):
        boxes = np.array([[x - 20, 20, x + 20, 40]], dtype=np.float32)
        assert crop_with_iou(boxes, size, draws, min_iou=-np.inf, min_scale=0.3) == expected


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(20, 200),
    width=st.integers(20, 200),
    bound=st.sampled_from([0.1, 0.3, 0.5, -np.inf]),
)
def test_first_acceptable_crop_is_taken(seed: int, height: int, width: int, bound: float) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    ends = np.sort(rng.uniform(0, 1, (3, 2, 2)), axis=1).reshape(3, 4)
    boxes = (ends * [width, height, width, height]).astype(np.float32)
    draws = rng.uniform(0, 1, 20 * DRAWS_PER_ATTEMPT)
    expected = None
    for scale, aspect, left, top in draws.reshape(-1, DRAWS_PER_ATTEMPT):
        scale = 0.3 + 0.7 * scale
        low, high = max(0.5, scale**2), min(2, 1 / scale**2)
        ratio = (low + (high - low) * aspect) ** 0.5
        w, h = int(scale * ratio * width), int(scale / ratio * height)
        x, y = int(left * (width - w)), int(top * (height - h))
        if w == 0 or h == 0:
            continue
        rect = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64)
        if float(box_iou(torch.from_numpy(boxes).double(), rect).min()) < bound:
            continue
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        if any(x < cx < x + w and y < cy < y + h for cx, cy in centres):
            expected = (x, y, x + w, y + h)
            break
    assert crop_with_iou(boxes, (height, width), draws, min_iou=bound, min_scale=0.3) == expected


def test_canvas_by_hand() -> None:
    # Scale 1 + 3 * 1/3 = 2; aspect between 0.5 and 2 and, at a third, 1: twice as large.
    draws = np.array([1 / 3, 1 / 3, 0.5, 0.999])
    assert expanded((30, 40), draws, max_scale=4.0) == (60, 80, 20, 30)
    # At scale 1.1 the canvas is no higher than the image where its aspect is above 1.1 squared.
    narrow = np.array([0.1 / 3, 0.999, 0.5, 0.5])
    assert expanded((30, 40), narrow, max_scale=4.0) is not None
    assert expanded((30, 40), np.array([0.0, 0.5, 0.5, 0.5]), max_scale=4.0) == (30, 40, 0, 0)


@settings(max_examples=100, deadline=None)
@given(
    draws=st.lists(st.floats(0, 0.999999), min_size=4, max_size=4),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
)
def test_image_lies_on_its_canvas(draws: list[float], height: int, width: int) -> None:
    canvas = expanded((height, width), np.array(draws), max_scale=4.0)
    if canvas is not None:
        assert 0 <= canvas.left <= canvas.width - width
        assert 0 <= canvas.top <= canvas.height - height
        assert canvas.width * canvas.height <= 16 * width * height


def test_levels_are_clipped_and_rounded_down() -> None:
    levels = np.array([0.0, 100.0, 250.0])
    assert scaled(levels, 1.0, 10.9).tolist() == [10, 110, 255]
    assert scaled(levels, 1.0, -100.5).tolist() == [0, 0, 149]
    assert scaled(levels, 1.5, 0.0).tolist() == [0, 150, 255]
    assert scaled(levels, 0.507, 0.0).tolist() == [0, 50, 126]


STRENGTHS = {"brightness": 32.0, "contrast": 0.5, "hue": 18, "saturation": 0.5}
NEVER = 0.9


@pytest.mark.parametrize(
    ("draws", "pixel", "expected"),
    [
        # Half-way from -32 to 32 and a quarter above: 16 are added.
        ([0.1, 0.75, NEVER, 0, NEVER, 0, NEVER, 0], [10, 20, 250], [26, 36, 255]),
        # A factor of 0.5 + 0.25 = 0.75.
        ([NEVER, 0, 0.1, 0.25, NEVER, 0, NEVER, 0], [100, 20, 250], [75, 15, 187]),
        # Pure red, turned by 18 steps of two degrees: (255, 153, 0) has hue 36.
        ([NEVER, 0, NEVER, 0, 0.1, 0.999, NEVER, 0], [255, 0, 0], [255, 153, 0]),
        # Backwards over zero: hue -36 is 324.
        ([NEVER, 0, NEVER, 0, 0.1, 0.0, NEVER, 0], [255, 0, 0], [255, 0, 153]),
        # Half the saturation, 127 of 255.
        ([NEVER, 0, NEVER, 0, NEVER, 0, 0.1, 0.0], [255, 0, 0], [255, 128, 128]),
        # Brightness first, contrast of its result second: (100 + 32) * 0.5.
        ([0.1, 1.0, 0.1, 0.0, NEVER, 0, NEVER, 0], [100, 100, 100], [66, 66, 66]),
    ],
)
def test_distortion_by_hand(draws: list[float], pixel: list[int], expected: list[int]) -> None:
    image = np.full((2, 3, 3), pixel, dtype=np.uint8)
    result = distort(image, np.array(draws), **STRENGTHS)
    assert result.dtype == np.uint8
    assert np.abs(result[1, 2].astype(int) - expected).max() <= 1
    assert (image == pixel).all()


def test_nothing_drawn_is_the_image_itself() -> None:
    image = textured(20, 30, 1)
    assert distort(image, np.full(8, NEVER), **STRENGTHS) is image


def test_without_randomness_it_is_a_resize_with_a_drawn_interpolation() -> None:
    image = textured(61, 83, 0)
    seen = set()
    for number in range(40):
        sample = still((30, 40))(image, BOXES, LABELS, SampleKey(1, 0, number))
        plain = PlainResize(size=(30, 40))(image, BOXES, LABELS, SampleKey(1, 0, number))
        assert np.array_equal(sample.boxes, plain.boxes)
        assert sample.transform == plain.transform
        matches = [
            method
            for method in INTERPOLATIONS
            if np.array_equal(sample.image, cv2.resize(image, (40, 30), interpolation=method))
        ]
        assert matches
        seen.update(matches)
    assert seen == set(INTERPOLATIONS)
    assert still((30, 40)).plain() == PlainResize(size=(30, 40))


def test_boxes_that_became_too_small_are_dropped() -> None:
    boxes = np.array([[10, 10, 10.8, 50], [10, 10, 10.9, 50]], dtype=np.float32)
    sample = still((600, 800))(textured(60, 80, 0), boxes, LABELS, SampleKey(1, 0, 0))
    # One hundredth of 80 columns are 0.8, which is not enough.
    assert sample.labels.tolist() == [2]
    # With none left, the image is used as it is, boxes and all.
    alone = still((600, 800), flip_probability=1.0)
    small = alone(textured(60, 80, 0), boxes[:1], LABELS[:1], SampleKey(1, 0, 0))
    assert small.transform == (10.0, 10.0, 0.0, 0.0)
    assert small.labels.tolist() == [4]


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
    sample = M2DetAugment(size=(48, 64))(
        textured(height, width, 1), boxes, np.arange(count), SampleKey(seed, 1, 2)
    )
    assert sample.image.shape == (48, 64, 3)
    assert sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32
    assert sample.boxes.min(initial=0) >= -1e-3
    assert (sample.boxes[:, [2, 3]] <= [64 + 1e-3, 48 + 1e-3]).all()
    if len(sample.boxes) == count and sample.transform == (64 / width, 48 / height, 0.0, 0.0):
        return
    assert (sample.boxes[:, 2:] - sample.boxes[:, :2] > [0.64, 0.48]).all()
    expected = np.clip(map_boxes(sample, boxes[sample.labels]), 0, [64, 48, 64, 48])
    # A crop cuts boxes where the image ends; what lies around it is filled, not image.
    inside = np.all(np.abs(sample.boxes - expected) < 1e-2, axis=1)
    cut = (sample.boxes[:, :2] >= expected[:, :2] - 1e-2).all(axis=1) & (
        sample.boxes[:, 2:] <= expected[:, 2:] + 1e-2
    ).all(axis=1)
    assert (inside | cut).all()


def test_transform_maps_pixels_where_the_image_shows_them() -> None:
    # A picture of its own coordinates: red is x, green is y, and the fill is neither.
    image = np.zeros((200, 240, 3), dtype=np.uint8)
    image[..., 0] = np.arange(240)
    image[..., 1] = np.arange(200)[:, None]
    boxes = np.array([[40, 40, 200, 160]], dtype=np.float32)
    augment = still(
        (100, 120),
        min_ious=(0.1, None),
        flip_probability=0.5,
        expand_probability=0.5,
        fill=(0, 0, 255),
    )
    flips = shown = 0
    for number in range(60):
        sample = augment(image, boxes, LABELS[:1], SampleKey(3, 0, number))
        sx, sy, tx, ty = sample.transform
        flips += sx < 0
        left, top, right, bottom = sample.boxes[0].tolist()
        row, column = int((top + bottom) / 2), int((left + right) / 2)
        x, y = (column + 0.5 - tx) / sx - 0.5, (row + 0.5 - ty) / sy - 0.5
        if sample.image[row, column, 2] == 0:
            shown += 1
            slack = 1.5 + 1 / min(abs(sx), sy)
            assert abs(float(sample.image[row, column, 0]) - x) < slack
            assert abs(float(sample.image[row, column, 1]) - y) < slack
    assert 10 < flips < 50
    assert shown == 60


def recipe(augment: M2DetAugment, image: np.ndarray, key: SampleKey) -> np.ndarray:
    """The recipe's own order, for the whole image: colour, a canvas drawn in full, resize."""
    image = distort(
        image,
        key.uniforms(Domain.COLOUR, DRAWS),
        brightness=augment.brightness,
        contrast=augment.contrast,
        hue=augment.hue,
        saturation=augment.saturation,
    )
    height, width = image.shape[:2]
    draws = key.uniforms(Domain.EXPAND, 1 + ATTEMPTS * DRAWS_PER_ATTEMPT)
    if draws[0] < augment.expand_probability:
        place = expanded((height, width), draws[1:], max_scale=augment.expand_ratio)
        assert place is not None
        canvas = np.empty((place.height, place.width, 3), np.uint8)
        canvas[:] = augment.fill
        canvas[place.top : place.top + height, place.left : place.left + width] = image
        image = canvas
    draw = key.uniforms(Domain.RESIZE, 1)[0]
    method = INTERPOLATIONS[int(draw * len(INTERPOLATIONS))]
    return cv2.resize(image, augment.size[::-1], interpolation=method)


@pytest.mark.parametrize("side", [96, 512])
def test_pixels_are_those_of_the_recipe_drawn_in_full(side: int) -> None:
    # Smooth, of all colours, and away from black and white by the strongest brightness.
    y, x = np.mgrid[0:240, 0:320] / np.array([240, 320])[:, None, None]
    image = np.stack([60 + 130 * x, 60 + 130 * y, 125 + 60 * np.sin(6 * (x + y))], axis=-1)
    augment = M2DetAugment(
        size=(side, side), min_ious=("whole",), contrast=0.2, flip_probability=0.0
    )
    boxes = np.array([[0, 0, 320, 240]], np.float32)
    apart = []
    for number in range(100):
        key = SampleKey(5, 0, number)
        sample = augment(image.astype(np.uint8), boxes, LABELS[:1], key)
        expected = recipe(augment, image.astype(np.uint8), key)
        left, top, right, bottom = sample.boxes[0].round().astype(int)
        # Its edge is mixed with the canvas in the recipe, and lies up to half a pixel elsewhere.
        inner = np.s_[top + 2 : bottom - 2, left + 2 : right - 2]
        difference = np.abs(sample.image[inner].astype(int) - expected[inner])
        apart.append(float(difference.mean()))
        # An interpolation reaches four pixels of the canvas far.
        outside = np.ones((side, side), np.bool_)
        outside[max(top - 10, 0) : bottom + 10, max(left - 10, 0) : right + 10] = False
        assert np.array_equal(sample.image[outside], expected[outside])
        # One level of rounding, and half a pixel of the steepest slope, 360 levels from end to end.
        assert apart[-1] < 1.0 + 0.5 * 360 / min(right - left, bottom - top)
    assert np.mean(apart) < 1.0


def test_draws_follow_the_configured_probabilities() -> None:
    image, key = textured(60, 80, 0), SampleKey
    expanding = still(expand_probability=0.6)
    count = sum(expanding(image, BOXES, LABELS, key(1, 0, i)).transform[0] < 1 for i in range(500))
    assert abs(count - 300) < 6 * 11  # six standard deviations
    cropping = still(min_ious=("whole", None))
    count = sum(cropping(image, BOXES, LABELS, key(1, 0, i)).transform[0] > 1 for i in range(500))
    assert abs(count - 250) < 6 * 11.2


def test_impossible_bound_leaves_the_image_whole() -> None:
    boxes = np.array([[0, 0, 2, 2], [78, 58, 80, 60]], dtype=np.float32)
    sample = still(min_ious=(0.9,))(textured(60, 80, 0), boxes, LABELS, SampleKey(1, 0, 0))
    assert sample.transform == (1.0, 1.0, 0.0, 0.0)


def test_another_word_than_whole_is_refused() -> None:
    with pytest.raises(ValueError, match="min_ious"):
        M2DetAugmentation(min_ious=("all",))
