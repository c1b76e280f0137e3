"""Prior boxes (anchors): the same few shapes repeated over the cells of each feature map.

A recipe is a list of :class:`Level`; :func:`grid_boxes` lays it out. Priors of SSD are relative to
the input size, anchors of other families are in pixels: the unit is that of the levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """One feature map and the boxes at each of its cells.

    Attributes:
        rows, columns: cells of the feature map.
        step: distance between the centres of neighbouring cells.
        shapes: width and height of each box of a cell, in output order.
        offset: position of the centre inside its cell, as a fraction of the step.
        step_x: distance of centres in a row, where it is not ``step``.
    """

    rows: int
    columns: int
    step: float
    shapes: Sequence[tuple[float, float]]
    offset: float = 0.5
    step_x: float | None = None


def grid_boxes(levels: Sequence[Level]) -> Tensor:
    """(A, 4) float64 ``cx, cy, w, h``: level by level, row by row, cell by cell, shape by shape.

    float64, so that each use rounds to float32 once, after its own arithmetic.
    """
    parts = []
    for level in levels:
        shapes = torch.tensor(level.shapes, dtype=torch.float64)
        cy = (torch.arange(level.rows, dtype=torch.float64) + level.offset) * level.step
        step_x = level.step if level.step_x is None else level.step_x
        cx = (torch.arange(level.columns, dtype=torch.float64) + level.offset) * step_x
        grid = (level.rows, level.columns, len(shapes))
        # Not empty: a skeleton has what is allocated for layers without values.
        boxes = torch.zeros(*grid, 4, dtype=torch.float64)
        boxes[..., 0] = cx[None, :, None]
        boxes[..., 1] = cy[:, None, None]
        boxes[..., 2:] = shapes
        parts.append(boxes.reshape(-1, 4))
    return torch.cat(parts)


def elongated(scale: float, ratios: Sequence[int]) -> list[tuple[float, float]]:
    """Wide and tall box of the area ``scale`` squared, for each ratio of the sides."""
    shapes = []
    for ratio in ratios:
        long, short = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
        shapes += [(long, short), (short, long)]
    return shapes


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
        scale, following = scales[index : index + 2]
        if index == 0:
            shapes = [(0.1, 0.1), *elongated(scale, (2,))]
        else:
            between = math.sqrt(scale * following)
            shapes = [(scale, scale), *elongated(scale, (2, 3)), (between, between)]
        levels.append(Level(count, count, step / 300, shapes))
    return levels


#: Cells and steps in pixels of the maps of the classic SSD, by input size.
_CLASSIC_MAPS = {
    300: ((38, 19, 10, 5, 3, 1), (8, 16, 32, 64, 100, 300)),
    512: ((64, 32, 16, 8, 4, 2, 1), (8, 16, 32, 64, 128, 256, 512)),
}

#: Size in pixels of the square at each map and of the one that would follow, by recipe and input
#: size. Those at 300 pixels stand in amdegroot/ssd.pytorch's data/config.py, and ``coco`` is what
#: torchvision's ssd300_vgg16 uses as well. Those at 512 follow the published rule: from 15 % (VOC)
#: or 10 % (COCO) of the input size to 90 % in equal steps, and 7 % or 4 % at the first map.
_CLASSIC_SIZES = {
    ("voc", 300): (30, 60, 111, 162, 213, 264, 315),
    ("coco", 300): (21, 45, 99, 153, 207, 261, 315),
    ("voc", 512): (35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    ("coco", 512): (20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
}


def classic_ssd_levels(recipe: Literal["voc", "coco"], size: Literal[300, 512]) -> list[Level]:
    """Priors of the original SSD, relative to the input size; 8,732 at 300 and 24,564 at 512.

    A cell has a square of the map's own scale, one between this and the next map's, and elongated
    boxes: of ratio 2 at the first and the last two maps, of 2 and 3 at the others. No side is
    longer than the image.
    """
    cells, steps = _CLASSIC_MAPS[size]
    scales = [pixels / size for pixels in _CLASSIC_SIZES[recipe, size]]
    levels = []
    for index, (count, step) in enumerate(zip(cells, steps, strict=True)):
        scale, following = scales[index : index + 2]
        ratios = (2, 3) if 0 < index < len(cells) - 2 else (2,)
        between = math.sqrt(scale * following)
        shapes = [(scale, scale), (between, between), *elongated(scale, ratios)]
        cut = [(min(width, 1.0), min(height, 1.0)) for width, height in shapes]
        levels.append(Level(count, count, step / size, cut))
    return levels
