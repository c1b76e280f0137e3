"""The patches of the M2Det recipe: a crop with a bound on its IoU, and a place on a large canvas.

Source: VDIGPKU/M2Det, data/data_augment.py, at de4a624. All attempts of a crop are drawn and judged
as arrays, and the first acceptable one is taken: the same patch as one after the other would give.

Shape legend: T attempts, k boxes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.crop import Rect, centres_of, overlaps

#: Attempts before another bound is drawn, and before zooming out is given up.
ATTEMPTS = 50
#: Draws of one attempt, for a crop as for a canvas: scale, aspect, left, top.
DRAWS_PER_ATTEMPT = 4
#: Draws of one round: a bound, and the attempts at it.
DRAWS_PER_ROUND = 1 + ATTEMPTS * DRAWS_PER_ATTEMPT

_SMALLEST_ASPECT, _LARGEST_ASPECT = 0.5, 2.0


def crop_with_iou(
    boxes: NDArray[np.float32],
    size: tuple[int, int],
    draws: NDArray[np.float64],
    *,
    min_iou: float,
    min_scale: float,
) -> Rect | None:
    """The first of T random patches that overlaps every box by ``min_iou`` at least.

    The patch is ``scale * aspect`` of the image wide and ``scale / aspect`` high; it must hold the
    centre of a box strictly inside.

    Args:
        boxes: (k, 4) xyxy pixels of the image, at least one.
        size: (height, width) of the image.
        draws: (T * 4,) uniform in [0, 1).
        min_iou: what the smallest IoU of a box with the patch must reach; ``-inf`` for no bound.
        min_scale: smallest scale; the largest is 1.

    Returns:
        The patch, or None when there is no acceptable one.
    """
    height, width = size
    scale, aspect, left, top = draws.reshape(-1, DRAWS_PER_ATTEMPT).T
    scale = min_scale + (1.0 - min_scale) * scale
    low = np.maximum(_SMALLEST_ASPECT, scale * scale)
    high = np.minimum(_LARGEST_ASPECT, 1.0 / (scale * scale))
    aspect = np.sqrt(low + (high - low) * aspect)
    w, h = np.trunc(scale * aspect * width), np.trunc(scale / aspect * height)
    x, y = np.floor(left * (width - w)), np.floor(top * (height - h))
    rects = np.stack([x, y, x + w, y + h], axis=1)  # (T, 4)
    iou = overlaps(boxes, rects)  # (T, k)
    centres = centres_of(boxes)
    within = (rects[:, None, :2] < centres) & (centres < rects[:, None, 2:])  # (T, k, 2)
    inside: NDArray[np.bool_] = np.all(within, axis=2)
    accepted = inside.any(axis=1) & (iou.min(axis=1) >= min_iou)
    if not accepted.any():
        return None
    return Rect(*(int(edge) for edge in rects[int(np.argmax(accepted))]))


class Canvas(NamedTuple):
    """Where an image lies on a larger one; whole pixels."""

    height: int
    width: int
    left: int
    top: int


def expanded(
    size: tuple[int, int], draws: NDArray[np.float64], *, max_scale: float
) -> Canvas | None:
    """The first of T random canvases on which an image has room.

    Args:
        size: (height, width) of the image.
        draws: (T * 4,) uniform in [0, 1).
        max_scale: largest scale; the smallest is 1.

    Returns:
        The canvas, ``scale * aspect`` times as wide and ``scale / aspect`` times as high as the
        image; None when none of them has room.
    """
    height, width = size
    scale, aspect, left, top = draws.reshape(-1, DRAWS_PER_ATTEMPT).T
    scale = 1.0 + (max_scale - 1.0) * scale
    low = np.maximum(_SMALLEST_ASPECT, 1.0 / (scale * scale))
    high = np.minimum(_LARGEST_ASPECT, scale * scale)
    aspect = np.sqrt(low + (high - low) * aspect)
    wider, higher = scale * aspect, scale / aspect
    room = np.flatnonzero((wider >= 1.0) & (higher >= 1.0))
    if not len(room):
        return None
    first = int(room[0])
    w, h = int(wider[first] * width), int(higher[first] * height)
    # Both ends of a range of places are taken.
    return Canvas(h, w, int(left[first] * (w - width + 1)), int(top[first] * (h - height + 1)))
