"""Prior boxes of M2Det, a function of the input size alone.

Source: VDIGPKU/M2Det, configs/m2det{320,512,704,800}_*.py and layers/functions/prior_box.py.
"""

from __future__ import annotations

import math

from torch import Tensor

from detectors.m2det.config import Size
from detectors.priors import Level, elongated, grid_boxes

#: Scales of the pyramid, and priors at each of their cells.
SCALES = 6
BOXES_PER_CELL = 6

#: Distance in pixels between the cells of each scale, by input size.
_STEPS: dict[Size, tuple[int, ...]] = {
    320: (8, 16, 32, 64, 107, 320),
    512: (8, 16, 32, 64, 128, 256),
    704: (8, 16, 32, 64, 117, 176),
    800: (8, 16, 32, 62, 115, 160),
}

#: Side of the square at each scale and at the one that would follow, relative to the input size.
_SIDES: dict[Size, tuple[float, ...]] = {
    320: (0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    512: (0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    704: (0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05),
    800: (0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
}


def scale_cells(size: Size) -> list[int]:
    """Cells along a side of each scale's map, large to small.

    The maps from stride 8 on halve, rounding up; the last comes from a 3x3 convolution without
    padding.
    """
    cells = [size // 8]
    for _ in range(SCALES - 2):
        cells.append(-(-cells[-1] // 2))
    return [*cells, cells[-1] - 2]


def m2det_levels(size: Size) -> list[Level]:
    """The boxes at each scale: a square, one between it and the next, elongated ones of 2 and 3."""
    sides = [round(size * share, 2) / size for share in _SIDES[size]]
    levels = []
    for index, (cells, step) in enumerate(zip(scale_cells(size), _STEPS[size], strict=True)):
        side, following = sides[index : index + 2]
        between = math.sqrt(side * following)
        shapes = [(side, side), (between, between), *elongated(side, (2, 3))]
        levels.append(Level(cells, cells, step / size, shapes))
    return levels


def m2det_priors(size: Size) -> Tensor:
    """(A, 4) float64 ``cx, cy, w, h`` relative to the input size.

    Each of the four numbers is cut to [0, 1], not the corners: boxes may reach beyond the image.
    12,810 priors at 320 pixels, 32,760 at 512, 62,022 at 704, 80,208 at 800.
    """
    return grid_boxes(m2det_levels(size)).clamp(0.0, 1.0)
