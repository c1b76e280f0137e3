"""Samples made of several images: mosaic and mixup, for the first epochs of a training.

Sources: Bochkovskiy et al., "YOLOv4", 2020, section 3.4, for four images around a random point;
Zhang et al., "Bag of Freebies for Training Object Detection Neural Networks", 2019, section 3.1,
for a blend of two with the boxes of both; Ge et al., "YOLOX", 2021, for switching both off before
the end. What comes out is an image with boxes like any other, which the augmentation of the recipe
then crops, colours and resizes. Deviation: both images of a blend count fully in the losses, as in
YOLOX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.geometry import resize
from orchestrator.data.counter_rng import Domain, SampleKey

#: Of a box that was cut, this fraction must be left.
MIN_VISIBLE = 0.1
#: Grey that YOLO fills with.
_FILL = 114
#: Draws of one sample: whether a mosaic, its centre, three images; whether a blend, its image.
_DRAWS = 8


class Picture(NamedTuple):
    """An image and its boxes.

    Attributes:
        image: (h, w, 3) uint8 RGB.
        boxes: (k, 4) float32 xyxy, pixels of ``image``.
        labels: (k,) int64.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mosaic and mixup as a pure function of a picture, a key, and the pictures it may take.

    Attributes:
        size: (H, W) of the network input; a mosaic is twice as large.
        mosaic: probability of one.
        mixup: probability of a blend, of a mosaic or of a single image.
        share: weight of the first image in a blend.
        until_epoch: from this epoch on, counted from 0, pictures stay as they are; None: never.
    """

    size: tuple[int, int]
    mosaic: float = 0.0
    mixup: float = 0.0
    share: float = 0.5
    until_epoch: int | None = None

    @property
    def images(self) -> int:
        """The most images that one sample is made of."""
        return (4 if self.mosaic else 1) + (1 if self.mixup else 0)

    def __call__(
        self, picture: Picture, key: SampleKey, count: int, fetch: Callable[[int], Picture]
    ) -> Picture:
        """The picture, or one made of it and others.

        Args:
            picture: of the sample.
            key: addresses the draws.
            count: pictures there are to take.
            fetch: gives each, by its number in 0..count-1.
        """
        if self.until_epoch is not None and key.epoch >= self.until_epoch:
            return picture
        draws = key.uniforms(Domain.MIX, _DRAWS)
        if draws[0] < self.mosaic:
            others = [fetch(int(draw * count)) for draw in draws[3:6]]
            picture = mosaic([picture, *others], self.size, (float(draws[1]), float(draws[2])))
        if draws[6] < self.mixup:
            picture = blend(picture, fetch(int(draws[7] * count)), share=self.share)
        return picture


def mosaic(
    pictures: Sequence[Picture], size: tuple[int, int], centre: tuple[float, float]
) -> Picture:
    """Four pictures around a point, each with a corner at it.

    Args:
        pictures: upper left, upper right, lower left, lower right. Each is made as large as fits
            ``size``, and what then reaches beyond the canvas is cut off.
        size: (H, W); the canvas is twice as high and wide.
        centre: x and y of the point in [0, 1], of the middle half of the canvas.
    """
    height, width = size
    canvas = np.full((2 * height, 2 * width, 3), _FILL, dtype=np.uint8)
    x, y = int(width * (0.5 + centre[0])), int(height * (0.5 + centre[1]))
    boxes, labels = [], []
    for position, picture in enumerate(pictures):
        part, scale = fitted(picture.image, size)
        rows, columns = part.shape[:2]
        left = x - columns if position % 2 == 0 else x
        top = y - rows if position < 2 else y
        x1, y1 = max(left, 0), max(top, 0)
        x2, y2 = min(left + columns, 2 * width), min(top + rows, 2 * height)
        canvas[y1:y2, x1:x2] = part[y1 - top : y2 - top, x1 - left : x2 - left]
        moved = picture.boxes * scale + np.array([left, top, left, top], np.float32)
        seen, keep = cut(moved, (x1, y1, x2, y2))
        boxes.append(seen)
        labels.append(picture.labels[keep])
    return Picture(canvas, np.concatenate(boxes), np.concatenate(labels))


def blend(first: Picture, second: Picture, *, share: float) -> Picture:
    """Two pictures over each other, with the boxes of both.

    The second is made as large as fits the first and lies at its upper left; around it the first
    stays as it is.
    """
    part, scale = fitted(second.image, (first.image.shape[0], first.image.shape[1]))
    rows, columns = part.shape[:2]
    image = first.image.copy()
    under = image[:rows, :columns]
    image[:rows, :columns] = cv2.addWeighted(under, share, part, 1.0 - share, 0.0)
    boxes = np.concatenate([first.boxes, (second.boxes * scale).astype(np.float32)])
    return Picture(image, boxes, np.concatenate([first.labels, second.labels]))


def fitted(
    image: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An image as large as fits ``size`` = (H, W), and the (4,) factors of its boxes."""
    height, width = image.shape[:2]
    factor = min(size[0] / height, size[1] / width)
    rows = min(size[0], max(1, round(height * factor)))
    columns = min(size[1], max(1, round(width * factor)))
    scale = np.array([columns / width, rows / height] * 2, dtype=np.float32)
    return resize(image, (rows, columns)), scale


def cut(
    boxes: NDArray[np.float32], window: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Boxes cut at an xyxy window.

    Returns:
        (k', 4) those of which a tenth of the area is left, and (k,) bool telling which.
    """
    seen = np.clip(boxes, np.array(window[:2] * 2), np.array(window[2:] * 2)).astype(np.float32)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left = np.prod(seen[:, 2:] - seen[:, :2], axis=1)
    keep: NDArray[np.bool_] = (left > 0) & (left >= MIN_VISIBLE * areas)
    return seen[keep], keep
