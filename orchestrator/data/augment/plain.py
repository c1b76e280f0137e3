"""Nothing but a stretch to the input size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import NoAugmentation
from orchestrator.data.augment.geometry import Sample, resized
from orchestrator.data.counter_rng import SampleKey


class PlainResize(NoAugmentation):
    """No augmentation, and what evaluation does where training stretches images too.

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
        """Stretch the image; nothing is drawn."""
        return resized(image, boxes, labels, self.size, into=into)

    def plain(self) -> PlainResize:
        """Itself."""
        return self

    @property
    def padding(self) -> None:
        """Images are stretched, not padded."""
