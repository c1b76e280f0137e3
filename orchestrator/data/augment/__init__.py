"""Augmentations: pure functions of an image, its boxes and a key that addresses the draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.geometry import Sample, resized
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.keyed import SampleKey

if TYPE_CHECKING:
    # The schema knows every detector and so imports torch, which no data task needs.
    from orchestrator.config.schema import NoAugmentation, SSDAugmentation

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
    if config.name == "none":
        return PlainResize(size)
    return SSDAugment(size=size, **config.model_dump(exclude={"name"}))
