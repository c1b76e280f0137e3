"""Random brightness, contrast and saturation as MindSpore's ``RandomColorAdjust`` defines them.

Source: mindspore-ai/mindspore, minddata/dataset/kernels/image/random_color_adjust_op.cc for the
draws (a random order, one uniform factor each) and image_utils.cc for the arithmetic: every
adjustment takes and returns 8 bits, so each rounds and clips once, and the three do not commute.
"""

from __future__ import annotations

from itertools import permutations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: Draws that :func:`adjust_colour` consumes: the order and three factors.
DRAWS = 4
_ORDERS = tuple(permutations(range(3)))


def adjust_colour(
    image: Image,
    draws: NDArray[np.float64],
    *,
    brightness: float,
    contrast: float,
    saturation: float,
    into: Image | None = None,
) -> Image:
    """Adjust in random order, each by a factor drawn from [max(0, 1 - x), 1 + x].

    Args:
        image: (H, W, 3) uint8 RGB.
        draws: (4,) uniform in [0, 1): the order, then the factors in the order of the arguments.
        brightness, contrast, saturation: x of each adjustment; 0 leaves it out.
        into: (H, W, 3) memory for the result.

    Returns:
        (H, W, 3) uint8; the image itself where nothing is adjusted.
    """
    adjustments = (
        (adjust_brightness, brightness),
        (adjust_contrast, contrast),
        (adjust_saturation, saturation),
    )
    order = [i for i in _ORDERS[int(draws[0] * len(_ORDERS))] if adjustments[i][1] > 0.0]
    for which in order:
        adjust, strength = adjustments[which]
        low = max(0.0, 1.0 - strength)
        factor = low + float(draws[1 + which]) * (1.0 + strength - low)
        image = adjust(image, factor, into if which == order[-1] else None)
    return image


def adjust_brightness(image: Image, factor: float, into: Image | None = None) -> Image:
    """Every value times ``factor``."""
    # On unsigned values and factors "Abs" changes nothing: this is a rounded, saturated product.
    return _uint8(cv2.convertScaleAbs(image, dst=into, alpha=factor))


def adjust_contrast(image: Image, factor: float, into: Image | None = None) -> Image:
    """Blend with the mean grey value of the image: 0 is flat, 1 the image itself."""
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    flat = np.full_like(image, mean)
    return _uint8(cv2.addWeighted(flat, 1.0 - factor, image, factor, 0.0, dst=into))


def adjust_saturation(image: Image, factor: float, into: Image | None = None) -> Image:
    """Blend with the grey version of the image: 0 is grey, 1 the image itself."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _uint8(cv2.addWeighted(grey, 1.0 - factor, image, factor, 0.0, dst=into))


def _uint8(image: cv2.typing.MatLike) -> Image:
    return image.astype(np.uint8, copy=False)
