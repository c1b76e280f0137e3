"""Two augmentations as another package brings them: this file and two entry points."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from orchestrator.config.augmentations import AugmentationSettings, ImageAugmentationSettings
from orchestrator.data.augment.geometry import Sample, placed, resize
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.counter_rng import Domain, SampleKey


class GreyAugmentation(ImageAugmentationSettings):
    """Some images lose their colours.

    Attributes:
        name: selects this augmentation.
        probability: of losing them.
    """

    builder: ClassVar[str] = "greying:Grey"
    name: Literal["grey"] = "grey"
    probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5


class Grey(GreyAugmentation):
    """The augmentation of that section."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        """The mean of red, green and blue in all three."""
        if key.uniforms(Domain.COLOUR, 1)[0] < self.probability:
            image = np.repeat(image.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
        return image, boxes, labels


class CornerAugmentation(AugmentationSettings):
    """Images stretched into the upper left quarter of the input.

    Attributes:
        name: selects this augmentation.
    """

    builder: ClassVar[str] = "greying:Corner"
    name: Literal["corner"] = "corner"


class Corner(CornerAugmentation):
    """The augmentation of that section.

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
        """Half as wide and half as high as the input."""
        rows, columns = self.size[0] // 2, self.size[1] // 2
        sx, sy = columns / image.shape[1], rows / image.shape[0]
        sample = Sample(
            image=resize(image, (rows, columns)),
            boxes=(boxes * np.array([sx, sy, sx, sy])).astype(np.float32),
            labels=labels,
            transform=(sx, sy, 0.0, 0.0),
        )
        return placed(sample, self.size, (0, 0, 0))

    def plain(self) -> PlainResize:
        """Evaluation stretches images over the whole input."""
        return PlainResize(size=self.size)

    @property
    def padding(self) -> None:
        """Evaluation pads nothing."""
