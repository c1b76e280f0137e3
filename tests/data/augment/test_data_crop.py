from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.data.augment.crop import OverlapRule, Rect, crop_boxes, find_crop

BOXES = np.array([[10, 10, 50, 50], [60, 20, 90, 80]], dtype=np.float32)
SIZE = (100, 100)


def iou(box: list[float], rect: list[int]) -> float:
    width = max(0.0, min(box[2], rect[2]) - max(box[0], rect[0]))
    height = max(0.0, min(box[3], rect[3]) - max(box[1], rect[1]))
    inter = width * height
    area = (box[2] - box[0]) * (box[3] - box[1])
    union = area + (rect[2] - rect[0]) * (rect[3] - rect[1]) - inter
    return inter / union if union else 0.0


def sequential(
    boxes: NDArray[np.float32],
    size: tuple[int, int],
    draws: NDArray[np.float64],
    *,
    min_iou: float,
    min_crop: float,
    rule: OverlapRule,
) -> Rect | None:
    """The published loop, one attempt after the other, in plain Python numbers."""
    height, width = size
    for a, b, c, d in draws.reshape(-1, 4).tolist():
        w = (a * (1.0 - min_crop) + min_crop) * width
        h = (b * (1.0 - min_crop) + min_crop) * height
        if h / w < 0.5 or h / w > 2:
            continue
        left, top = c * (width - w), d * (height - h)
        rect = [int(left), int(top), int(left + w), int(top + h)]
        overlaps = [iou(box, rect) for box in boxes.tolist()]
        met = [overlap for overlap in overlaps if overlap > 0]
        if not met:
            continue
        if rule == "span" and min(met) < min_iou and max(met) > min_iou + 0.2:
            continue
        if rule == "min" and min(met) < min_iou:
            continue
        for box, overlap in zip(boxes.tolist(), overlaps, strict=True):
            x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
            if overlap > 0 and rect[0] < x < rect[2] and rect[1] < y < rect[3]:
                return Rect(*rect)
    return None


@st.composite
def scenes(draw: st.DrawFn) -> tuple[NDArray[np.float32], tuple[int, int], NDArray[np.float64]]:
    height, width = draw(st.integers(4, 120)), draw(st.integers(4, 120))
    boxes = []
    for _ in range(draw(st.integers(1, 5))):
        x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        boxes.append((x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))))
    seed = draw(st.integers(0, 2**32))
    draws = np.random.Generator(np.random.PCG64(seed)).random(4 * 50)
    return np.array(boxes, dtype=np.float32), (height, width), draws


@settings(max_examples=300, deadline=None)
@given(
    scene=scenes(),
    min_iou=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]),
    min_crop=st.sampled_from([0.1, 0.3, 0.8]),
    rule=st.sampled_from(["span", "min"]),
)
def test_equals_the_sequential_loop(
    scene: tuple[NDArray[np.float32], tuple[int, int], NDArray[np.float64]],
    min_iou: float,
    min_crop: float,
    rule: OverlapRule,
) -> None:
    boxes, size, draws = scene
    options = {"min_iou": min_iou, "min_crop": min_crop, "rule": rule}
    assert find_crop(boxes, size, draws, **options) == sequential(boxes, size, draws, **options)


def attempt(width: float, height: float, left: float, top: float) -> list[float]:
    """Draws of the attempt that cuts this rectangle out of 100 x 100 pixels with min_crop 0.3.

    A quarter of a pixel more, which is cut off again, keeps rounding errors away.
    """
    w, h = width + 0.25, height + 0.25
    return [(w - 30) / 70, (h - 30) / 70, (left + 0.25) / (100 - w), (top + 0.25) / (100 - h)]


def find(*attempts: list[float], min_iou: float = 0.1, rule: OverlapRule = "span") -> Rect | None:
    draws = np.array(attempts).ravel()
    return find_crop(BOXES, SIZE, draws, min_iou=min_iou, min_crop=0.3, rule=rule)


def test_takes_the_first_acceptable_attempt() -> None:
    first, second = attempt(50, 60, 5, 5), attempt(80, 80, 10, 10)
    assert find(first, second) == Rect(5, 5, 55, 65)
    assert find(second, first) == Rect(10, 10, 90, 90)


@pytest.mark.parametrize("sides", [(90, 40), (40, 90)])
def test_refuses_a_shape_beyond_one_to_two(sides: tuple[int, int]) -> None:
    assert find(attempt(*sides, 5, 5)) is None


def test_refuses_a_crop_without_a_box() -> None:
    # Right of the first box and left of the second.
    assert (
        find_crop(
            BOXES[:1],
            SIZE,
            np.array(attempt(40, 40, 55, 10)),
            min_iou=0.1,
            min_crop=0.3,
            rule="span",
        )
        is None
    )


def test_refuses_a_crop_that_holds_no_centre() -> None:
    # Meets the first box in 31..50 x 31..50; its centre is at (30, 30), on the crop's corner.
    assert find(attempt(30, 30, 30, 30)) is None
    # One pixel to the left and up, the centre is inside.
    assert find(attempt(30, 30, 29, 29)) == Rect(29, 29, 59, 59)


def test_overlap_rules() -> None:
    # Crop 5,5 - 75,65: the first box lies inside, IoU 1600 / 4200 = 0.381; of the second
    # 15 x 45 = 675 pixels, IoU 675 / (1800 + 4200 - 675) = 0.127.
    crop = attempt(70, 60, 5, 5)
    rect = Rect(5, 5, 75, 65)
    assert find(crop, min_iou=0.1) == rect
    # 0.127 < 0.15, and 0.381 > 0.15 + 0.2: the span is too wide.
    assert find(crop, min_iou=0.15) is None
    # 0.127 < 0.3, but 0.381 < 0.3 + 0.2: ``span`` lets it pass, ``min`` does not.
    assert find(crop, min_iou=0.3) == rect
    assert find(crop, min_iou=0.3, rule="min") is None
    assert find(crop, min_iou=0.1, rule="min") == rect


def test_image_without_boxes_is_not_cropped() -> None:
    none = np.zeros((0, 4), dtype=np.float32)
    assert find_crop(none, SIZE, np.zeros(8), min_iou=0.1, min_crop=0.3, rule="span") is None


def test_crop_boxes_by_hand() -> None:
    boxes, keep = crop_boxes(BOXES, Rect(20, 15, 80, 60))
    # Centres (30, 30) and (75, 50) are inside; boxes are cut at the edges and moved.
    assert keep.tolist() == [True, True]
    assert boxes.tolist() == [[0, 0, 30, 35], [40, 5, 60, 45]]
    assert boxes.dtype == np.float32


def test_box_whose_centre_is_outside_is_dropped() -> None:
    boxes, keep = crop_boxes(BOXES, Rect(0, 0, 75, 60))
    assert keep.tolist() == [True, False]
    assert boxes.tolist() == [[10, 10, 50, 50]]
