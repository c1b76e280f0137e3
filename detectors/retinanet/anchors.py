"""Anchors of RetinaNet's five maps, in pixels of the input."""

from __future__ import annotations

import math

from detectors.backbones.spinenet import LEVELS
from detectors.priors import Level
from detectors.retinanet.config import AnchorConfig


def pyramid_levels(input_size: tuple[int, int], config: AnchorConfig) -> list[Level]:
    """Anchors of every map, ratio by ratio and within each from small to large.

    76,725 at 640 x 640 with the published nine to a cell.
    """
    levels = []
    for level in LEVELS:
        stride = 2**level
        sides = [
            stride * config.base * 2 ** (k / config.scales_per_octave)
            for k in range(config.scales_per_octave)
        ]
        shapes = [
            (side / math.sqrt(ratio), side * math.sqrt(ratio))
            for ratio in config.ratios
            for side in sides
        ]
        rows, columns = (length // stride for length in input_size)
        levels.append(Level(rows, columns, stride, shapes, offset=config.offset))
    return levels
