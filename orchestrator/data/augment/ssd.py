"""Training augmentation of the MindSpore SSD recipe: crop, resize, flip, colour.

Source: mindspore-ai/models, official/cv/SSD/src/dataset.py. Deviations, and why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* Boxes are clipped to the image before they are rounded to whole pixels, and one that rounding
  leaves without area is dropped: it could match no prior, yet would count as an object.

Pixels stay 8-bit from the decoder to the device, as in the recipe, so resize and each colour
adjustment round to whole grey levels.
"""

from __future__ import annotations

from itertools import permutations

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import SSDAugmentation
from orchestrator.data.augment.crop import (
    DRAWS_PER_ATTEMPT,
    crop_boxes,
    find_crop,
)
from orchestrator.data.augment.geometry import Sample, flipped, resized
from orchestrator.data.augment.plain import Stretching
from orchestrator.data.counter_rng import Domain, SampleKey


class SSDAugment(SSDAugmentation, Stretching):
    """The augmentation as a pure function of an image, its boxes and a key."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Augment one image; see :class:`~orchestrator.data.augment.protocol.Augment`."""
        boxes = np.rint(boxes)
        whole = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        sample = self._crop(image, boxes[whole], labels[whole], key)
        if key.uniforms(Domain.FLIP, 1)[0] < self.flip_probability:
            sample = flipped(sample)
        coloured = adjust_colour(
            sample.image,
            key.uniforms(Domain.COLOUR, DRAWS),
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            into=into,
        )
        return Sample(coloured, sample.boxes, sample.labels, sample.transform)

    def _crop(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> Sample:
        draws = key.uniforms(Domain.CROP, 1 + DRAWS_PER_ATTEMPT * self.crop_attempts)
        min_iou = self.min_ious[int(draws[0] * len(self.min_ious))]
        rect = None
        if min_iou is not None:
            rect = find_crop(
                boxes,
                (image.shape[0], image.shape[1]),
                draws[1:],
                min_iou=min_iou,
                min_crop=self.min_crop,
                rule=self.crop_overlap_rule,
            )
        if rect is None:
            return resized(image, boxes, labels, self.size)
        boxes, keep = crop_boxes(boxes, rect)
        image = image[rect.top : rect.bottom, rect.left : rect.right]
        origin = (rect.left, rect.top)
        return resized(image, boxes, labels[keep], self.size, origin=origin)


Image = NDArray[np.uint8]

#: Draws that :func:`adjust_colour` consumes: the order and three factors.
DRAWS = 4
_ORDERS = tuple(permutations(range(3)))


def adjust_colour(
    image: Image,
    draws: NDArray[np.float64],
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    into: Image | None = None,
) -> Image:
    """Adjust in random order, each by a factor drawn from [max(0, 1 - x), 1 + x].

    As MindSpore's ``RandomColorAdjust`` does it. Source: mindspore-ai/mindspore,
    minddata/dataset/kernels/image/random_color_adjust_op.cc for the draws (a random order, one
    uniform factor each) and image_utils.cc for the arithmetic: every adjustment takes and returns
    8 bits, so each rounds and clips once, and the three do not commute.

    Args:
        image: (H, W, 3) uint8 RGB.
        draws: (4,) uniform in [0, 1): the order, then the factors in the order of the arguments.
        brightness, contrast, saturation: x of each adjustment; 0 leaves it out.
        into: (H, W, 3) memory for the result.

    Returns:
        (H, W, 3) uint8; the image itself where nothing is adjusted.
    """
    adjustments = (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
    )
    order = [i for i in _ORDERS[int(draws[0] * len(_ORDERS))] if adjustments[i][1] > 0.0]
    for which in order:
        adjust, strength = adjustments[which]
        low = max(0.0, 1.0 - strength)
        factor = low + float(draws[1 + which]) * (1.0 + strength - low)
        image = adjust(image, factor, into if which == order[-1] else None)
    return image


def adjust_brightness(image: Image, factor: float, into: Image | None = None) -> Image:
    """Every value times ``factor``."""
    # On unsigned values and factors "Abs" changes nothing: this is a rounded, saturated product.
    return _uint8(cv2.convertScaleAbs(image, dst=into, alpha=factor))


def adjust_contrast(image: Image, factor: float, into: Image | None = None) -> Image:
    """Blend with the mean grey value of the image: 0 is flat, 1 the image itself."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    flat = np.full_like(image, mean)
    return _uint8(cv2.addWeighted(flat, 1.0 - factor, image, factor, 0.0, dst=into))


def adjust_saturation(image: Image, factor: float, into: Image | None = None) -> Image:
    """Blend with the grey version of the image: 0 is grey, 1 the image itself."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _uint8(cv2.addWeighted(grey, 1.0 - factor, image, factor, 0.0, dst=into))


def _uint8(image: cv2.typing.MatLike) -> Image:
    return image.astype(np.uint8, copy=False)
