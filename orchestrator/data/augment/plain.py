"""Nothing but a stretch to the input size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import AugmentationSettings, NoAugmentation
from orchestrator.data.augment.geometry import Sample, resized
from orchestrator.data.counter_rng import SampleKey


class Stretching(AugmentationSettings):
    """What augmentations share that stretch images to the input size instead of padding them.

    Attributes:
        size: (H, W) of the network input.
    """

    size: tuple[int, int]

    def plain(self) -> PlainResize:
        """A plain resize, as evaluation does it."""
        return PlainResize(size=self.size)

    @property
    def padding(self) -> None:
        """None: images are stretched."""


class PlainResize(NoAugmentation, Stretching):
    """No augmentation, and what evaluation does where training stretches images too."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Stretch the image; nothing is drawn."""
        return resized(image, boxes, labels, self.size, into=into)
