"""Anchors of the pyramid: three shapes of one area in each cell of five levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from detectors.boxes import to_corners
from detectors.priors import Level, grid_boxes

#: Pixels per cell of the published levels.
STRIDES = (4, 8, 16, 32, 64)

#: Height / width of the anchors of a cell, in output order.
RATIOS = (0.5, 1.0, 2.0)

#: Side of the square anchor, in strides.
_SCALE = 8


def level_sizes(size: tuple[int, int], strides: Sequence[int] = STRIDES) -> list[tuple[int, int]]:
    """Rows and columns of each level for an input of ``size`` (height, width)."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def pyramid_anchors(
    size: tuple[int, int], *, legacy: bool, strides: Sequence[int] = STRIDES
) -> Tensor:
    """(A, 4) float32 xyxy in pixels: level by level, row by row, cell by cell, ratio by ratio.

    Args:
        size: height and width of the input.
        legacy: the MindSpore model zoo's: the centre of a cell is that of its pixels, at
            ``(stride - 1) / 2``, and x2 is the last pixel inside. 245,520 at 768 x 1280, the first
            (-21, -9, 24, 12). Otherwise torchvision's: centred on the corner of a cell, and steps
            are the input size divided by the cells, rounded down, so that the last level has a
            smaller one where its stride does not divide the input; the first is (-23, -11, 23, 11).
        strides: pixels per cell of each level.

    Both round corners to whole pixels.
    """
    levels = []
    for stride, (rows, columns) in zip(strides, level_sizes(size, strides), strict=True):
        center = (stride - 1) / 2 if legacy else 0.0
        shapes = []
        for ratio in RATIOS:
            width, height = stride * _SCALE / math.sqrt(ratio), stride * _SCALE * math.sqrt(ratio)
            shapes.append((_rounded(width, center, legacy), _rounded(height, center, legacy)))
        step_y, step_x = (stride, stride) if legacy else (size[0] // rows, size[1] // columns)
        offset = center / step_y
        levels.append(Level(rows, columns, step_y, shapes, offset, step_x))
    return to_corners(grid_boxes(levels)).to(torch.float32)


def _rounded(length: float, center: float, legacy: bool) -> float:
    """Difference of the corners of an anchor around ``center`` once both are whole pixels."""
    half = (length - 1) / 2 if legacy else length / 2
    return float(round(center + half) - round(center - half))
