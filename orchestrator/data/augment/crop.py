"""The random crop of the MindSpore SSD recipe, with all its attempts tried at once.

Source: ``random_sample_crop`` in mindspore-ai/models, official/cv/SSD/src/dataset.py. The recipe
tries up to fifty rectangles one after the other and takes the first it likes. Here all rectangles
are drawn and judged as arrays and the first acceptable one is taken: the same rectangle at a
fraction of the time, since an attempt's draws do not depend on the attempts before it.

Shape legend: T attempts, k boxes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

OverlapRule = Literal["span", "min"]

#: Draws that one attempt consumes: width, height, left, top.
DRAWS_PER_ATTEMPT = 4
#: How far above the bound the largest IoU may lie before ``span`` refuses a crop.
_SPAN = 0.2
#: Allowed height / width of a crop.
_ASPECTS = (0.5, 2.0)


class Rect(NamedTuple):
    """A crop in whole pixels; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int


def find_crop(
    boxes: NDArray[np.float32],
    size: tuple[int, int],
    draws: NDArray[np.float64],
    *,
    min_iou: float,
    min_crop: float,
    rule: OverlapRule,
) -> Rect | None:
    """The first acceptable of T random crops.

    A crop is acceptable when its height is between half and twice its width, when it meets a box,
    when the IoUs of the boxes it meets satisfy ``rule``, and when the centre of one of them lies
    strictly inside it.

    Args:
        boxes: (k, 4) xyxy pixels of the image.
        size: (height, width) of the image.
        draws: (T * 4,) uniform in [0, 1).
        min_iou: bound that ``rule`` speaks of.
        min_crop: smallest width and height, as a fraction of the image's.
        rule: ``span`` refuses a crop when its smallest IoU is below ``min_iou`` and its largest
            above ``min_iou + 0.2``; ``min`` looks at the smallest alone.

    Returns:
        The crop, or None when there is no acceptable one.
    """
    if len(boxes) == 0:
        return None
    rects = _draw_rects(size, draws.reshape(-1, DRAWS_PER_ATTEMPT), min_crop)  # (T', 4)
    iou, centres = overlaps(boxes, rects), centres_of(boxes)  # (T', k), (k, 2)
    meets = iou > 0.0
    smallest = np.where(meets, iou, np.inf).min(axis=1)
    refused = smallest < min_iou
    if rule == "span":
        refused &= iou.max(axis=1) > min_iou + _SPAN
    inside = (rects[:, None, :2] < centres) & (centres < rects[:, None, 2:])  # (T', k, 2)
    accepted = (meets & inside[..., 0] & inside[..., 1]).any(axis=1) & ~refused
    if not accepted.any():
        return None
    return Rect(*(int(edge) for edge in rects[int(np.argmax(accepted))]))


def crop_boxes(
    boxes: NDArray[np.float32], rect: Rect
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes seen through a crop.

    A box stays when its centre lies strictly inside the crop; it is cut at the crop's edges.

    Returns:
        (k', 4) xyxy pixels of the crop, and (k,) bool telling which boxes stayed.
    """
    low = np.array(rect[:2], dtype=np.float32)
    high = np.array(rect[2:], dtype=np.float32)
    centres = centres_of(boxes)
    keep: NDArray[np.bool_] = np.all((low < centres) & (centres < high), axis=1)
    cut = boxes[keep]
    return np.concatenate(
        [np.maximum(cut[:, :2], low) - low, np.minimum(cut[:, 2:], high) - low], axis=1
    ), keep


def overlaps(boxes: NDArray[np.float32], rects: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, k) IoU of (T, 4) rectangles with (k, 4) boxes, all xyxy."""
    sides = np.minimum(rects[:, None, 2:], boxes[:, 2:]) - np.maximum(
        rects[:, None, :2], boxes[:, :2]
    )  # (T, k, 2)
    np.maximum(sides, 0.0, out=sides)
    inter: NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    # Plain products: for so few numbers ``np.prod`` takes four times as long.
    spans = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    extents = rects[:, 2:] - rects[:, :2]
    areas = spans[:, 0] * spans[:, 1] + (extents[:, 0] * extents[:, 1])[:, None]
    areas -= inter
    iou: NDArray[np.float64] = inter / areas
    return iou


def centres_of(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """(k, 2) x and y of the middle of (k, 4) xyxy boxes."""
    centres: NDArray[np.float32] = (boxes[:, :2] + boxes[:, 2:]) / np.float32(2.0)
    return centres


def _draw_rects(
    size: tuple[int, int], draws: NDArray[np.float64], min_crop: float
) -> NDArray[np.float64]:
    """(T', 4) xyxy whole pixels: the drawn rectangles of an allowed aspect, in order."""
    height, width = size
    sides = (draws[:, :2] * (1.0 - min_crop) + min_crop) * (width, height)
    aspect = sides[:, 1] / sides[:, 0]
    allowed = (aspect >= _ASPECTS[0]) & (aspect <= _ASPECTS[1])
    sides = sides[allowed]
    low = draws[allowed, 2:] * ((width, height) - sides)
    rects: NDArray[np.float64] = np.trunc(np.concatenate([low, low + sides], axis=1))
    return rects
