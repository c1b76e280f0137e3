"""Anchors of the pyramid: three shapes of one area in each cell of five levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detectors.boxes import to_corners
from detectors.priors import Level, grid_boxes
from detectors.roi_align import pyramid_layout

#: Pixels per cell of the published levels.
STRIDES = (4, 8, 16, 32, 64)

#: Height / width of the anchors of a cell, in output order.
RATIOS = (0.5, 1.0, 2.0)

#: Side of the square anchor, in strides.
_SCALE = 8

#: Levels of the pyramid that proposals are pooled from.
ROI_LEVELS = 4


class Canvas(nn.Module):
    """What follows from the size of the images alone, on the device beforehand.

    What the host made there in a step, it would have to wait for.

    Args:
        size: height and width.
        legacy: see :func:`pyramid_anchors`; no box reaches beyond the last pixel then.
        cross_border: whether anchors that reach beyond the image are learnt from.
        strides: pixels per cell of each level.

    Attributes:
        anchors: (A, 4), see :func:`pyramid_anchors`.
        usable: (1, A) bool, those that are learnt from.
        limit: (2,) largest x and y of a box.
        layout: of the levels that proposals are pooled from.
        level_lengths: anchors of each level.
    """

    anchors: Tensor
    usable: Tensor
    limit: Tensor
    layout: Tensor

    def __init__(
        self, size: tuple[int, int], *, legacy: bool, cross_border: bool, strides: Sequence[int]
    ) -> None:
        super().__init__()
        sizes = level_sizes(size, strides)
        self.level_lengths = [rows * columns * len(RATIOS) for rows, columns in sizes]
        anchors = pyramid_anchors(size, legacy=legacy, strides=strides)
        beyond = 1 if legacy else 0
        limit = torch.tensor([size[1] - beyond, size[0] - beyond], dtype=torch.float32)
        inside = (anchors >= 0).all(1) & (anchors[:, 2:] <= limit).all(1)
        usable = torch.ones_like(inside) if cross_border else inside
        layout = pyramid_layout(sizes[:ROI_LEVELS], strides[:ROI_LEVELS])
        self.register_buffer("anchors", anchors, persistent=False)
        self.register_buffer("usable", usable.unsqueeze(0), persistent=False)
        self.register_buffer("limit", limit, persistent=False)
        self.register_buffer("layout", layout, persistent=False)


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
