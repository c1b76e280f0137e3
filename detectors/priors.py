"""Prior boxes (anchors): the same few shapes repeated over the cells of each feature map.

A recipe is a list of :class:`Level`; :func:`grid_boxes` lays it out. Priors of SSD are relative to
the input size, anchors of other families are in pixels: the unit is that of the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """One feature map and the boxes at each of its cells.

    Attributes:
        rows, columns: cells of the feature map.
        step: distance between the centres of neighbouring cells.
        shapes: width and height of each box of a cell, in output order.
        offset: position of the centre inside its cell, as a fraction of ``step``.
    """

    rows: int
    columns: int
    step: float
    shapes: Sequence[tuple[float, float]]
    offset: float = 0.5


def grid_boxes(levels: Sequence[Level]) -> Tensor:
    """(A, 4) float64 ``cx, cy, w, h``: level by level, row by row, cell by cell, shape by shape.

    float64, so that each use rounds to float32 once, after its own arithmetic.
    """
    parts = []
    for level in levels:
        shapes = torch.tensor(level.shapes, dtype=torch.float64)
        cy = (torch.arange(level.rows, dtype=torch.float64) + level.offset) * level.step
        cx = (torch.arange(level.columns, dtype=torch.float64) + level.offset) * level.step
        grid = (level.rows, level.columns, len(shapes))
        boxes = torch.empty(*grid, 4, dtype=torch.float64)
        boxes[..., 0] = cx[None, :, None]
        boxes[..., 1] = cy[:, None, None]
        boxes[..., 2:] = shapes
        parts.append(boxes.reshape(-1, 4))
    return torch.cat(parts)


def mindspore_ssd300_levels() -> list[Level]:
    """Priors of the MindSpore model zoo's SSD300, relative to the input size; 1,917 in all.

    Scales run linearly from 0.2 to 0.95. The first map is special: one small square and two
    elongated boxes. Boxes reach beyond the image and are not cut.
    Source: mindspore-ai/models, official/cv/SSD/src/box_utils.py.
    """
    cells = (19, 10, 5, 3, 2, 1)
    steps = (16, 32, 64, 100, 150, 300)
    rate = (0.95 - 0.2) / (len(cells) - 1)
    scales = [0.2 + rate * level for level in range(len(cells))] + [1.0]
    levels = []
    for index, (count, step) in enumerate(zip(cells, steps, strict=True)):
        scale = scales[index]

        def pair(ratio: float, scale: float = scale) -> list[tuple[float, float]]:
            long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            return [(long, short), (short, long)]

        if index == 0:
            shapes = [(0.1, 0.1), *pair(2)]
        else:
            between = math.sqrt(scale * scales[index + 1])
            shapes = [(scale, scale), *pair(2), *pair(3), (between, between)]
        levels.append(Level(count, count, step / 300, shapes))
    return levels
