"""What every augmentation is built from: the prepared sample, resize, flip and box transform."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Padding:
    """How images come to the network's size where they keep their aspect ratio.

    An image is made as large as fits the input, at its upper left, and the rest is filled.

    Attributes:
        fill: red, green and blue of the rest.
        short_side: the shorter side is made no longer than this; None for no such limit.
        long_side: the longer side, likewise.
    """

    fill: tuple[int, int, int]
    short_side: int | None = None
    long_side: int | None = None


@dataclass(frozen=True)
class Sample:
    """One image at the network's input size, with what is needed to map back.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (k, 4) float32 xyxy, pixels of ``image``.
        labels: (k,) int64.
        transform: ``sx, sy, tx, ty`` with network x = sx * original x + tx; sx is negative where
            the image was flipped.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    transform: tuple[float, float, float, float]


def resize(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    *,
    interpolation: int = cv2.INTER_LINEAR,
    into: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Resize of (h, w, 3) to ``size`` = (H, W), without keeping the aspect ratio."""
    made = cv2.resize(image, (size[1], size[0]), dst=into, interpolation=interpolation)
    return made.astype(np.uint8, copy=False)


def resized(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    labels: NDArray[np.int64],
    size: tuple[int, int],
    *,
    origin: tuple[int, int] = (0, 0),
    interpolation: int = cv2.INTER_LINEAR,
    into: NDArray[np.uint8] | None = None,
) -> Sample:
    """An image and its boxes, stretched to the network's input ``size`` = (H, W).

    Args:
        image: (h, w, 3) uint8 RGB, possibly cut out of a larger one.
        boxes: (k, 4) float32 xyxy, pixels of ``image``.
        labels: (k,) int64.
        size: of the result.
        origin: left and top of ``image`` in the image it was cut out of.
        interpolation: one of OpenCV's.
        into: (H, W, 3) memory for the image.
    """
    height, width = image.shape[:2]
    sx, sy = size[1] / width, size[0] / height
    return Sample(
        image=resize(image, size, interpolation=interpolation, into=into),
        boxes=(boxes * np.array([sx, sy, sx, sy])).astype(np.float32),
        labels=labels,
        transform=(sx, sy, -origin[0] * sx, -origin[1] * sy),
    )


def flipped(
    sample: Sample, *, plus_one: bool = False, into: NDArray[np.uint8] | None = None
) -> Sample:
    """Mirror left and right, into the memory of ``into`` where that is given.

    With ``plus_one`` coordinates name pixels rather than the lines between them, so that the last
    column, at width - 1, becomes 0.
    """
    edge = sample.image.shape[1] - (1 if plus_one else 0)
    sx, sy, tx, ty = sample.transform
    boxes = sample.boxes.copy()
    boxes[:, [0, 2]] = edge - sample.boxes[:, [2, 0]]
    return Sample(
        image=cv2.flip(sample.image, 1, dst=into).astype(np.uint8, copy=False),
        boxes=boxes,
        labels=sample.labels,
        transform=(-sx, sy, edge - tx, ty),
    )


def placed(
    sample: Sample,
    size: tuple[int, int],
    fill: tuple[int, int, int],
    *,
    left: int = 0,
    top: int = 0,
    into: NDArray[np.uint8] | None = None,
) -> Sample:
    """The sample on a canvas of ``size`` = (H, W), the rest in one RGB colour.

    Where it is as large as the canvas it is left as it is; else the canvas is made in the memory of
    ``into``, if that is given.
    """
    height, width = sample.image.shape[:2]
    if (height, width) == size:
        return sample
    below, beside = size[0] - top - height, size[1] - left - width
    # Ten times as fast as filling an array with a colour by broadcasting.
    canvas = cv2.copyMakeBorder(
        sample.image, top, below, left, beside, cv2.BORDER_CONSTANT, dst=into, value=fill
    )
    sx, sy, tx, ty = sample.transform
    return Sample(
        image=canvas.astype(np.uint8, copy=False),
        boxes=sample.boxes + np.array([left, top, left, top], dtype=np.float32),
        labels=sample.labels,
        transform=(sx, sy, tx + left, ty + top),
    )
