"""What an augmentation is, and building one from its section of an experiment."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.plugins import load_object
from orchestrator.config.augmentations import AugmentationSettings, ImageAugmentationSettings
from orchestrator.data.augment.geometry import Padding, Sample
from orchestrator.data.counter_rng import SampleKey


class Augment(Protocol):
    """Anything that prepares one image for the network."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """The image and its boxes, brought to the network's input size.

        Args:
            image: (h, w, 3) uint8 RGB.
            boxes: (k, 4) float32 xyxy within the image.
            labels: (k,) int64.
            key: addresses the draws.
            into: (H, W, 3) memory that the result may be made in, and need not.
        """
        ...

    def plain(self) -> Augment:
        """The same preparation with nothing drawn: what evaluation does."""
        ...

    @property
    def padding(self) -> Padding | None:
        """How images keep their aspect ratio; None where they are stretched."""
        ...


class ImageAugment(Protocol):
    """Anything that changes an image before it is brought to the network's size."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """(h, w, 3) RGB, (k, 4) xyxy and (k,) labels to the same, of any size and number."""
        ...


def names_pixels(augment: Augment) -> bool:
    """Whether box coordinates name pixels, as its ``legacy_boxes`` says, and not edges of these.

    One that has no such attribute, which is no part of the protocol, has edges.
    """
    return bool(getattr(augment, "legacy_boxes", False))


def build_step(config: ImageAugmentationSettings) -> ImageAugment:
    """What a step of a list of augmentations asks for."""
    step: ImageAugment = load_object(config.builder)(**config.model_dump())
    return step


def build_augment(config: AugmentationSettings, size: tuple[int, int]) -> Augment:
    """The augmentation a configuration asks for, at network input ``size`` = (H, W)."""
    augment: Augment = load_object(config.builder)(size=size, **config.model_dump())
    return augment
