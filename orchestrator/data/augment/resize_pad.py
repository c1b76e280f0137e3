"""Augmentation of two-stage detectors: zoom out, resize with the aspect ratio kept, pad, flip.

Source: mindspore-ai/mindspore, model_zoo/official/cv/faster_rcnn/src/dataset.py. Deviations, and
why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* Zooming out puts the image on a larger one and then shrinks both; here the image is shrunk and put
  in its place at once, which is the same up to rounding the place to whole pixels.
* Boxes follow the pixels: they are scaled by the rounded size over the original one, not by the
  factor before rounding.

Filled pixels are so before normalisation, because images stay 8-bit up to the device.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import ResizePadAugmentation
from orchestrator.data.augment.geometry import Padding, Sample, flipped, placed, resize
from orchestrator.data.counter_rng import Domain, SampleKey


class ResizePad(ResizePadAugmentation):
    """The augmentation as a pure function of an image, its boxes and a key.

    The image is made as large as fits the canvas, at its upper left.

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
        draws = key.uniforms(Domain.EXPAND, 4)
        expands = draws[0] < self.expand_probability
        ratio = 1.0 + (self.expand_ratio - 1.0) * float(draws[1]) if expands else 1.0
        sample = self._placed(image, boxes, labels, ratio, (float(draws[2]), float(draws[3])))
        if key.uniforms(Domain.FLIP, 1)[0] < self.flip_probability:
            sample = flipped(sample, plus_one=self.legacy_boxes, into=into)
        return sample

    def plain(self) -> ResizePad:
        """The same without anything drawn, as evaluation does it."""
        return self.model_copy(update={"expand_probability": 0.0, "flip_probability": 0.0})

    @property
    def padding(self) -> Padding:
        """See :class:`~orchestrator.data.augment.geometry.Padding`."""
        return Padding(self.fill, short_side=self.short_side, long_side=self.long_side)

    def factor(self, height: float, width: float) -> float:
        """By how much an image of this size is enlarged."""
        factors = [self.size[0] / height, self.size[1] / width]
        if self.short_side is not None:
            factors.append(self.short_side / min(height, width))
        if self.long_side is not None:
            factors.append(self.long_side / max(height, width))
        return min(factors)

    def _placed(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        ratio: float,
        place: tuple[float, float],
    ) -> Sample:
        """On the canvas, after zooming out by ``ratio``; ``place`` is x and y in [0, 1]."""
        height, width = image.shape[:2]
        factor = self.factor(height * ratio, width * ratio)
        # Half up, as the recipe rounds; a thin image keeps one row.
        rows = min(self.size[0], max(1, int(height * factor + 0.5)))
        columns = min(self.size[1], max(1, int(width * factor + 0.5)))
        top = min(int(height * (ratio - 1.0) * place[1] * factor + 0.5), self.size[0] - rows)
        left = min(int(width * (ratio - 1.0) * place[0] * factor + 0.5), self.size[1] - columns)
        sx, sy = columns / width, rows / height
        mapped = boxes * np.array([sx, sy, sx, sy])
        last = 1 if self.legacy_boxes else 0
        edges = [columns - last, rows - last]
        sample = Sample(
            image=resize(image, (rows, columns)),
            boxes=np.clip(mapped, 0, [*edges, *edges]).astype(np.float32),
            labels=labels,
            transform=(sx, sy, 0.0, 0.0),
        )
        return placed(sample, self.size, self.fill, left=left, top=top)
