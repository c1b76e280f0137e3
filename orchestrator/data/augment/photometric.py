"""The photometric distortion of the SSD and M2Det recipes: brightness, contrast, hue, saturation.

Sources: Liu et al., "SSD", ECCV 2016, and VDIGPKU/M2Det, data/data_augment.py, at de4a624: each
happens with probability one half, in this order; every step rounds down to 8 bits. Where neither
hue nor saturation changes, the way to HSV and back is left out, which in the recipe rounds.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import PhotometricAugmentation
from orchestrator.data.counter_rng import Domain, SampleKey

Image = NDArray[np.uint8]

#: Draws that :func:`distort` consumes: whether and how much, four times.
DRAWS = 8
#: Hues of OpenCV's 8-bit HSV: degrees, halved.
_HUES = 180
_LEVELS = np.arange(256, dtype=np.float64)


class Photometric(PhotometricAugmentation):
    """The distortion as a step of a list of augmentations."""

    def __call__(
        self,
        image: Image,
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> tuple[Image, NDArray[np.float32], NDArray[np.int64]]:
        """Change the colours; boxes stay."""
        changed = distort(
            image,
            key.uniforms(Domain.COLOUR, DRAWS),
            brightness=self.brightness,
            contrast=self.contrast,
            hue=self.hue,
            saturation=self.saturation,
        )
        return changed, boxes, labels


def distort(
    image: Image,
    draws: NDArray[np.float64],
    *,
    brightness: float,
    contrast: float,
    hue: int,
    saturation: float,
) -> Image:
    """Distort an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        draws: (8,) uniform in [0, 1).
        brightness: grey levels added are drawn from [-brightness, brightness].
        contrast: values are multiplied by a factor from [1 - contrast, 1 + contrast].
        hue: halves of a degree added are drawn from the integers -hue .. hue.
        saturation: multiplied by a factor from [1 - saturation, 1 + saturation].

    Returns:
        (H, W, 3) uint8; the image itself where nothing was drawn.
    """
    happens, amounts = draws[0::2] < 0.5, draws[1::2]
    spread = 2.0 * amounts - 1.0
    # Both at once: what two tables do one after the other, one table does.
    levels = _LEVELS
    if happens[0]:
        levels = scaled(levels, 1.0, brightness * float(spread[0]))
    if happens[1]:
        levels = scaled(levels, 1.0 + contrast * float(spread[1]), 0.0)
    if levels is not _LEVELS:
        image = _looked_up(image, levels)
    turns, fades = happens[2] and hue > 0, happens[3] and saturation > 0
    if not (turns or fades):
        return image
    # One table for each of hue, saturation and value: twice as fast as taking them apart.
    tables = np.tile(_LEVELS[:, None, None], 3)  # (256, 1, 3)
    if turns:
        turn = int(amounts[2] * (2 * hue + 1)) - hue
        tables[:, 0, 0] = (_LEVELS + turn) % _HUES
    if fades:
        tables[:, 0, 1] = scaled(_LEVELS, 1.0 + saturation * float(spread[3]), 0.0)
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    turned = cv2.cvtColor(_looked_up(hsv, tables), cv2.COLOR_HSV2RGB)
    return turned.astype(np.uint8, copy=False)


def scaled(levels: NDArray[np.float64], factor: float, offset: float) -> NDArray[np.float64]:
    """``levels * factor + offset``, clipped to 0..255 and rounded down."""
    made: NDArray[np.float64] = np.floor(np.clip(levels * factor + offset, 0.0, 255.0))
    return made


def _looked_up(image: cv2.typing.MatLike, tables: NDArray[np.float64]) -> Image:
    return cv2.LUT(image, tables.astype(np.uint8)).astype(np.uint8, copy=False)
