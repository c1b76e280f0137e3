"""Several augmentations, one after the other."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import ChainAugmentation
from orchestrator.data.augment.geometry import Padding, Sample
from orchestrator.data.augment.protocol import Augment, ImageAugment, build_augment, build_step
from orchestrator.data.counter_rng import SampleKey


class Chain(ChainAugmentation):
    """Steps on the image in its own size, then what brings it to the network's.

    Each step has random numbers of its own, so the last augmentation draws what it would draw
    alone.

    Attributes:
        size: (H, W) of the network input.
    """

    size: tuple[int, int]

    @cached_property
    def _steps(self) -> list[ImageAugment]:
        return [build_step(step) for step in self.steps]

    @cached_property
    def _last(self) -> Augment:
        return build_augment(self.last, self.size)

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Augment one image; see :class:`~orchestrator.data.augment.protocol.Augment`."""
        for number, step in enumerate(self._steps, start=1):
            image, boxes, labels = step(image, boxes, labels, key.of_stage(number))
        return self._last(image, boxes, labels, key, into)

    def plain(self) -> Augment:
        """That of the last augmentation."""
        return self._last.plain()

    @property
    def padding(self) -> Padding | None:
        """That of the last augmentation."""
        return self._last.padding
