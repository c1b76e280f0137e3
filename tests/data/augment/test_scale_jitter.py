from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from detectors.boxes import map_to_original
from orchestrator.config.schema import ScaleJitterAugmentation
from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.scale_jitter import ScaleJitter
from orchestrator.data.counter_rng import SampleKey
from tests.support.data_cases import textured

LABELS = np.array([4, 2], dtype=np.int64)
BOXES = np.array([[10, 20, 50, 40], [0, 0, 80, 60]], dtype=np.float32)
NONE = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


def of_scale(scale: float, size: tuple[int, int], *, flip: float = 0.0) -> ScaleJitter:
    return ScaleJitter(size=size, min_scale=scale, max_scale=scale, flip_probability=flip)


def prepare(augment: ScaleJitter, *, sample: int = 0, seed: int = 1) -> Sample:
    return augment(textured(60, 80, 0), BOXES, LABELS, SampleKey(seed, 0, sample))


def coordinates(height: int, width: int) -> np.ndarray:
    """A picture of its own coordinates: red is x, green is y."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.arange(width)
    image[..., 1] = np.arange(height)[:, None]
    image[..., 2] = 255
    return image


def test_a_fitting_image_by_hand() -> None:
    # 60 x 80 fits 90 x 160 by a factor of 1.5: 90 x 120 at the upper left, the rest filled.
    augment = ScaleJitter(size=(90, 160), fill=(7, 8, 9)).plain()
    sample = prepare(augment)
    assert sample.image.shape == (90, 160, 3)
    assert sample.transform == (1.5, 1.5, 0.0, 0.0)
    assert sample.boxes.tolist() == [[15, 30, 75, 60], [0, 0, 120, 90]]
    assert (sample.image[:, 120:] == (7, 8, 9)).all()
    assert not (sample.image[:, 119] == (7, 8, 9)).all()
    assert augment.plain() == augment


def test_a_small_scale_leaves_room_and_flips_the_image_alone() -> None:
    # Fits 45 x 80 by 0.75: 45 x 60 pixels. Flipped, x becomes 60 - x, and the fill stays right.
    sample = prepare(of_scale(0.5, (90, 160), flip=1.0))
    assert sample.transform == (-0.75, 0.75, 60.0, 0.0)
    assert sample.boxes.tolist() == [[22.5, 15, 52.5, 30], [0, 0, 60, 45]]
    assert not sample.image[:, 60:].any()
    assert not sample.image[45:].any()
    assert sample.image[:45, :60].any(axis=2).all()


def test_a_large_scale_cuts_a_part_out() -> None:
    # Fits 120 x 160 by 2: 120 x 160 pixels, of which 60 x 80 remain.
    seen = set()
    for index in range(200):
        sample = prepare(of_scale(2.0, (60, 80)), sample=index)
        sx, sy, tx, ty = sample.transform
        assert (sx, sy) == (2.0, 2.0)
        assert -80 <= tx <= 0
        assert -60 <= ty <= 0
        seen.add((tx, ty))
        whole = np.add([20, 40, 100, 80], [tx, ty, tx, ty])
        inside = np.clip(whole, 0, [80, 60, 80, 60])
        if (inside[2:] > inside[:2]).all():
            assert sample.boxes[0].tolist() == inside.tolist()
        else:
            assert sample.labels.tolist() == [2]
    xs, ys = ({place[axis] for place in seen} for axis in (0, 1))
    # Every place of 81 x 61 is as likely: 200 draws see most columns and both ends.
    assert len(xs) > 60
    assert len(ys) > 45
    assert {min(xs), max(xs)} & {-80.0, -79.0}
    assert {min(ys), max(ys)} & {0.0, -1.0}


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    # RetinaNet card 6: int(side * scale + 0.5) with scale = min(640 / h, 640 / w).
    [(480, 640, 480, 640), (640, 427, 640, 427), (333, 500, 426, 640), (375, 500, 480, 640)],
)
def test_sizes_on_the_published_canvas(height: int, width: int, rows: int, columns: int) -> None:
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    sample = ScaleJitter(size=(640, 640)).plain()(image, *NONE, SampleKey(1, 0, 0))
    content = (sample.image == 200).all(axis=2)
    assert content[:rows, :columns].all()
    assert content.sum() == rows * columns
    assert sample.transform == (columns / width, rows / height, 0.0, 0.0)


def test_scales_are_uniform_between_their_bounds() -> None:
    augment = ScaleJitter(size=(60, 80), min_scale=0.5, max_scale=2.0)
    scales = [abs(prepare(augment, sample=index).transform[0]) for index in range(600)]
    assert min(scales) >= 0.5 - 0.01
    assert max(scales) <= 2.0 + 0.01
    # Mean 1.25 and standard deviation 1.5 / sqrt(12), over 600 draws.
    assert np.mean(scales) == pytest.approx(1.25, abs=6 * 0.433 / 600**0.5)
    assert np.std(scales) == pytest.approx(0.433, rel=0.1)
    flips = sum(prepare(augment, sample=index).transform[0] < 0 for index in range(600))
    assert abs(flips - 300) < 6 * 12.3


def test_transform_maps_pixels_where_the_image_shows_them() -> None:
    image = coordinates(200, 240)
    boxes = np.array([[40, 40, 200, 160]], dtype=np.float32)
    augment = ScaleJitter(size=(128, 128))
    shown = 0
    for index in range(60):
        sample = augment(image, boxes, LABELS[:1], SampleKey(3, 0, index))
        sx, sy, tx, ty = sample.transform
        for column, row in ((60, 50), (20, 30), (100, 90)):
            if sample.image[row, column, 2] != 255:
                continue
            shown += 1
            # Centre of the network pixel, in original pixel indices.
            x, y = (column + 0.5 - tx) / sx - 0.5, (row + 0.5 - ty) / sy - 0.5
            assert abs(float(sample.image[row, column, 0]) - x) < 2.1
            assert abs(float(sample.image[row, column, 1]) - y) < 2.1
    assert shown > 120


def test_detections_map_back_to_the_original() -> None:
    size = (60, 80)
    sample = prepare(ScaleJitter(size=(96, 96)).plain())
    assert sample.boxes[1].tolist() == [0, 0, 96, 72]
    # What is found in the fill lies beyond the image, and is cut to it.
    found = torch.from_numpy(np.concatenate([sample.boxes, [[48, 36, 96, 96]]])[None])
    transform = torch.tensor([sample.transform], dtype=torch.float64)
    original = map_to_original(found.float(), transform, torch.tensor([size]))
    want = torch.tensor([*BOXES.tolist(), [40.0, 30, 80, 60]])
    torch.testing.assert_close(original[0], want, rtol=0, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    count=st.integers(0, 6),
    bounds=st.tuples(st.floats(0.05, 3.0), st.floats(0.05, 3.0)).map(sorted),
)
def test_boxes_stay_inside_and_follow_the_transform(
    seed: int, height: int, width: int, count: int, bounds: list[float]
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    ends = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    boxes = (ends * [width, height, width, height]).astype(np.float32)
    augment = ScaleJitter(size=(48, 64), min_scale=bounds[0], max_scale=bounds[1])
    image = textured(height, width, 1)
    sample = augment(image, boxes, np.arange(count), SampleKey(seed, 1, 2))
    assert sample.image.shape == (48, 64, 3)
    assert sample.image.dtype == np.uint8
    assert sample.boxes.dtype == np.float32
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
    sx, sy, tx, ty = sample.transform
    x = np.sort(boxes[:, [0, 2]].astype(np.float64) * sx + tx, axis=1)
    y = np.sort(boxes[:, [1, 3]].astype(np.float64) * sy + ty, axis=1)
    edges = np.sort([tx, width * sx + tx])
    limits = np.clip([[edges[0], ty], [edges[1], height * sy + ty]], 0, [64, 48])
    expected = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    expected = np.clip(expected, np.tile(limits[0], 2), np.tile(limits[1], 2))
    kept = (expected[:, 2:] > expected[:, :2] + 1e-4).all(axis=1)
    assert set(np.flatnonzero(kept)) <= set(sample.labels.tolist())
    assert np.abs(sample.boxes - expected[sample.labels]).max(initial=0) < 1e-3


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_scale is 2 and must not be above"):
        ScaleJitterAugmentation(min_scale=2.0, max_scale=1.0)
