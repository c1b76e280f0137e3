"""Augmentations: pure functions of an image, its boxes and a key that addresses the draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.schema import NoAugmentation, SSDAugmentation
from orchestrator.data.augment.geometry import Sample, resized
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.keyed import SampleKey

__all__ = ["Augment", "PlainResize", "SSDAugment", "Sample", "build_augment"]


class Augment(Protocol):
    """Anything that prepares one image for the network."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> Sample:
        """(h, w, 3) RGB, (k, 4) xyxy and (k,) labels to a sample of the network's input size."""
        ...


@dataclass(frozen=True)
class PlainResize:
    """No augmentation: what evaluation and prediction do.

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
    ) -> Sample:
        """Stretch the image; nothing is drawn."""
        return resized(image, boxes, labels, self.size)


def build_augment(config: SSDAugmentation | NoAugmentation, size: tuple[int, int]) -> Augment:
    """The augmentation a configuration asks for, at network input ``size`` = (H, W)."""
    match config:
        case SSDAugmentation():
            return SSDAugment(config, size)
        case NoAugmentation():
            return PlainResize(size)
