"""Augmentations: pure functions of an image, its boxes and a key that addresses the draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.geometry import Sample
from orchestrator.data.augment.m2det import M2DetAugment
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.augment.resize_pad import ResizePad
from orchestrator.data.augment.scale_jitter import ScaleJitter
from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.counter_rng import SampleKey

if TYPE_CHECKING:
    # The schema knows every detector and so imports torch, which no data task needs.
    from orchestrator.config.schema import Augmentation

__all__ = [
    "Augment",
    "M2DetAugment",
    "PlainResize",
    "ResizePad",
    "SSDAugment",
    "Sample",
    "ScaleJitter",
    "build_augment",
]


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
        """(h, w, 3) RGB, (k, 4) xyxy and (k,) labels to a sample of the network's input size.

        Its image may be made in the memory of ``into``, (H, W, 3), and need not.
        """
        ...

    def plain(self) -> Augment:
        """The same preparation with nothing drawn: what evaluation does."""
        ...


def build_augment(config: Augmentation, size: tuple[int, int]) -> Augment:
    """The augmentation a configuration asks for, at network input ``size`` = (H, W)."""
    if config.name == "none":
        return PlainResize(size)
    options = config.model_dump(exclude={"name"})
    if config.name == "m2det":
        return M2DetAugment(size=size, **options)
    if config.name == "resize_pad":
        return ResizePad(size=size, **options)
    if config.name == "scale_jitter":
        return ScaleJitter(size=size, **options)
    return SSDAugment(size=size, **options)
