"""Training augmentation of the MindSpore SSD recipe: crop, resize, flip, colour.

Source: mindspore-ai/models, official/cv/SSD/src/dataset.py. Deviations, and why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* Boxes are clipped to the image before they are rounded to whole pixels, and one that rounding
  leaves without area is dropped: it could match no prior, yet would count as an object.

Pixels stay 8-bit from the decoder to the device, as in the recipe, so resize and each colour
adjustment round to whole grey levels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import SSDAugmentation
from orchestrator.data.augment.colour import DRAWS as COLOUR_DRAWS
from orchestrator.data.augment.colour import adjust_colour
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
            key.uniforms(Domain.COLOUR, COLOUR_DRAWS),
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
