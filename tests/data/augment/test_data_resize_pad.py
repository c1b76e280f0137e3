from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.schema import ResizePadAugmentation
from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.augment.resize_pad import ResizePad
from orchestrator.data.counter_rng import SampleKey
from tests.support.data_cases import textured

LABELS = np.array([4, 2], dtype=np.int64)
BOXES = np.array([[10, 20, 50, 40], [0, 0, 80, 60]], dtype=np.float32)


def still(size: tuple[int, int], **changes: object) -> ResizePad:
    return ResizePad(**{"size": size, "legacy_boxes": False, **changes}).plain()


def prepare(augment: ResizePad, *, sample: int = 0) -> Sample:
    return augment(textured(60, 80, 0), BOXES, LABELS, SampleKey(1, 0, sample))


def test_landscape_by_hand() -> None:
    # 60 x 80 fits 90 x 160 by a factor of 1.5: 90 x 120 at the upper left, the rest filled.
    sample = prepare(still((90, 160), fill=(7, 8, 9)))
    assert sample.image.shape == (90, 160, 3)
    assert sample.transform == (1.5, 1.5, 0.0, 0.0)
    assert sample.boxes.tolist() == [[15, 30, 75, 60], [0, 0, 120, 90]]
    assert (sample.image[:, 120:] == (7, 8, 9)).all()
    assert not (sample.image[:, 119] == (7, 8, 9)).all()
    assert np.array_equal(sample.labels, LABELS)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    # Faster R-CNN card 2: the canvas of 768 x 1280, portrait too.
    [(480, 640, 768, 1024), (640, 480, 768, 576), (427, 640, 768, 1151), (300, 1000, 384, 1280)],
)
def test_sizes_on_the_published_canvas(height: int, width: int, rows: int, columns: int) -> None:
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    image = np.full((height, width, 3), 200, dtype=np.uint8)
    sample = still((768, 1280))(image, *none, SampleKey(1, 0, 0))
    content = (sample.image == 200).all(axis=2)
    assert content[:rows, :columns].all()
    assert content.sum() == rows * columns


@pytest.mark.parametrize(
    ("height", "width", "factor"),
    # torchvision's rule: the short side 800 unless the long one then passes 1333.
    [(480, 640, 800 / 480), (640, 480, 800 / 480), (400, 1000, 1.333), (1000, 400, 1.333)],
)
def test_sides_may_be_limited_as_torchvision_limits_them(
    height: int, width: int, factor: float
) -> None:
    augment = still((1344, 1344), short_side=800, long_side=1333)
    assert augment.factor(height, width) == pytest.approx(factor)


def test_legacy_boxes_end_at_the_last_pixel_and_flip_with_it() -> None:
    sample = prepare(still((90, 160), legacy_boxes=True))
    assert sample.boxes.tolist() == [[15, 30, 75, 60], [0, 0, 119, 89]]
    turned = ResizePad(
        size=(90, 160), legacy_boxes=True, expand_probability=0.0, flip_probability=1.0
    )
    flipped = prepare(turned)
    assert flipped.boxes.tolist() == [[84, 30, 144, 60], [40, 0, 159, 89]]
    assert np.array_equal(flipped.image, sample.image[:, ::-1])


@settings(max_examples=60, deadline=None)
@given(
    sample=st.integers(0, 10_000),
    height=st.integers(5, 90),
    width=st.integers(5, 90),
    side=st.one_of(st.none(), st.integers(20, 60)),
)
def test_pixels_boxes_and_transform_agree(
    sample: int, height: int, width: int, side: int | None
) -> None:
    """A white rectangle on black ends up where its box says, wherever the image is put."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    left, top = width // 4, height // 4
    right, bottom = max(left + 1, 3 * width // 4), max(top + 1, 3 * height // 4)
    image[top:bottom, left:right] = 255
    box = np.array([[left, top, right, bottom]], dtype=np.float32)
    augment = ResizePad(size=(64, 96), legacy_boxes=False, long_side=side, expand_ratio=2.0)
    made = augment(image, box, LABELS[:1], SampleKey(3, 0, sample))
    assert made.image.shape == (64, 96, 3)
    assert ((made.boxes >= 0) & (made.boxes <= [96, 64, 96, 64])).all()
    sx, sy, tx, ty = made.transform
    x = sorted((left * sx + tx, right * sx + tx))
    y = sorted((top * sy + ty, bottom * sy + ty))
    assert np.allclose(made.boxes[0], [x[0], y[0], x[1], y[1]], atol=1e-3)
    rows, columns = np.nonzero(made.image[..., 0] > 127)
    if len(rows):
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.allclose(found, made.boxes[0], atol=1.0 + max(abs(sx), sy) / 2)


def test_half_of_the_images_are_zoomed_out_and_each_anywhere() -> None:
    augment = ResizePad(size=(60, 80), legacy_boxes=False)
    scales, offsets = [], []
    for sample in range(400):
        made = prepare(augment, sample=sample)
        scales.append(made.transform[1])
        offsets.append(made.transform[3])
    ratio = 1 / np.array(scales)
    zoomed = ratio > 1.02
    assert 0.4 < zoomed.mean() < 0.6
    assert ratio.max() <= 4.1
    assert ratio.max() > 3.7
    assert 2.2 < ratio[zoomed].mean() < 2.8
    assert np.array(offsets)[zoomed].std() > 3


def test_configuration_fills_every_field() -> None:
    config = ResizePadAugmentation()
    assert build_augment(config, (768, 1280)) == ResizePad(
        size=(768, 1280),
        short_side=None,
        long_side=None,
        fill=(0, 0, 0),
        legacy_boxes=True,
        expand_probability=0.5,
        expand_ratio=4.0,
        flip_probability=0.5,
    )
