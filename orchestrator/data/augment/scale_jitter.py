"""Augmentation of one-stage detectors on large inputs: scale jitter, crop, flip, pad.

Sources: tensorflow/tpu, models/official/detection (``random_crop`` after a jittered resize), and
yan-roo/SpineNet-Pytorch, whose pipeline does the same in mmdetection's words. With both scales at
1 it is the MindSpore SpineNet port's: resize with the aspect ratio kept, flip, pad. Deviations, and
why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* An image whose crop shows no box is used as it is, as tensorflow/tpu does; mmdetection takes
  another image.
* Boxes follow the pixels: they are scaled by the rounded size over the original one, not by the
  factor before rounding.

Filled pixels are so before normalisation, because images stay 8-bit up to the device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import ScaleJitterAugmentation
from orchestrator.data.augment.geometry import Padding, Sample, flipped, placed, resize
from orchestrator.data.counter_rng import Domain, SampleKey


class ScaleJitter(ScaleJitterAugmentation):
    """The augmentation as a pure function of an image, its boxes and a key.

    A scale is drawn, the image made as large as fits the canvas so enlarged or shrunk, and a random
    part no larger than the canvas put at its upper left.

    Attributes:
        size: (H, W) of the network input.
    """

    size: tuple[int, int]

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Augment one image; see :class:`~orchestrator.data.augment.protocol.Augment`."""
        draws = key.uniforms(Domain.CROP, 3)
        scale = self.min_scale + (self.max_scale - self.min_scale) * float(draws[0])
        sample = self._part(image, boxes, labels, scale, (float(draws[1]), float(draws[2])))
        if key.uniforms(Domain.FLIP, 1)[0] < self.flip_probability:
            sample = flipped(sample)
        return placed(sample, self.size, self.fill, into=into)

    def plain(self) -> ScaleJitter:
        """The same without anything drawn, as evaluation does it: the whole image, as it fits."""
        return self.model_copy(update={"min_scale": 1.0, "max_scale": 1.0, "flip_probability": 0.0})

    @property
    def padding(self) -> Padding:
        """See :class:`~orchestrator.data.augment.geometry.Padding`."""
        return Padding(self.fill)

    def _part(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        scale: float,
        place: tuple[float, float],
    ) -> Sample:
        """The resized image, or what fits the canvas of it; ``place`` is x and y in [0, 1)."""
        height, width = image.shape[:2]
        target = tuple(max(1, int(side * scale + 0.5)) for side in self.size)
        factor = min(target[0] / height, target[1] / width)
        # Half up, as the recipes round; a thin image keeps one row.
        rows = min(target[0], max(1, int(height * factor + 0.5)))
        columns = min(target[1], max(1, int(width * factor + 0.5)))
        spare = max(0, columns - self.size[1]), max(0, rows - self.size[0])
        left, top = (int(share * (room + 1)) for share, room in zip(place, spare, strict=True))
        part = resize(image, (rows, columns))[top : top + self.size[0], left : left + self.size[1]]
        sx, sy = columns / width, rows / height
        seen = boxes * np.array([sx, sy, sx, sy]) - np.array([left, top, left, top])
        bottom, right = part.shape[:2]
        seen = np.clip(seen, 0.0, [right, bottom, right, bottom]).astype(np.float32)
        keep = (seen[:, 2:] > seen[:, :2]).all(axis=1)
        return Sample(
            image=part,
            boxes=seen[keep],
            labels=labels[keep],
            transform=(sx, sy, -float(left), -float(top)),
        )
