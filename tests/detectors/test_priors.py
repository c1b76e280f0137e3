from __future__ import annotations

import math

import numpy as np
import torch

from detectors.priors import Level, grid_boxes, mindspore_ssd300_levels


def test_grid_runs_over_shapes_then_columns_then_rows() -> None:
    boxes = grid_boxes([Level(2, 3, 10.0, [(4.0, 2.0), (2.0, 4.0)]), Level(1, 1, 7.0, [(1, 1)], 0)])
    assert boxes.tolist() == [
        [5, 5, 4, 2], [5, 5, 2, 4], [15, 5, 4, 2], [15, 5, 2, 4], [25, 5, 4, 2], [25, 5, 2, 4],
        [5, 15, 4, 2], [5, 15, 2, 4], [15, 15, 4, 2], [15, 15, 2, 4], [25, 15, 4, 2],
        [25, 15, 2, 4],
        [0, 0, 1, 1],
    ]  # fmt: skip


def test_mindspore_ssd300_has_1917_priors_over_its_six_maps() -> None:
    counts = [len(grid_boxes([level])) for level in mindspore_ssd300_levels()]
    assert counts == [1083, 600, 150, 54, 24, 6]
    assert sum(counts) == 1917


def test_mindspore_ssd300_rows_by_hand() -> None:
    boxes = grid_boxes(mindspore_ssd300_levels())
    root2, root3 = math.sqrt(2), math.sqrt(3)
    expected = {
        # first cell of the 19 x 19 map: centre (0.5 * 16) / 300
        0: (8 / 300, 8 / 300, 0.1, 0.1),
        1: (8 / 300, 8 / 300, 0.2 * root2, 0.2 / root2),
        2: (8 / 300, 8 / 300, 0.2 / root2, 0.2 * root2),
        # its second row begins after 19 cells of 3 boxes
        57: (8 / 300, 24 / 300, 0.1, 0.1),
        # first cell of the 10 x 10 map: scale 0.35, next 0.5
        1083: (16 / 300, 16 / 300, 0.35, 0.35),
        1084: (16 / 300, 16 / 300, 0.35 * root2, 0.35 / root2),
        1085: (16 / 300, 16 / 300, 0.35 / root2, 0.35 * root2),
        1086: (16 / 300, 16 / 300, 0.35 * root3, 0.35 / root3),
        1087: (16 / 300, 16 / 300, 0.35 / root3, 0.35 * root3),
        1088: (16 / 300, 16 / 300, math.sqrt(0.35 * 0.5), math.sqrt(0.35 * 0.5)),
        # second cell of the 3 x 3 map: scale 0.65, steps of 100
        1839: (150 / 300, 50 / 300, 0.65, 0.65),
        # the only cell of the last map: scale 0.95, then the mean with 1
        1911: (0.5, 0.5, 0.95, 0.95),
        1916: (0.5, 0.5, math.sqrt(0.95), math.sqrt(0.95)),
    }
    for row, box in expected.items():
        np.testing.assert_allclose(boxes[row].numpy(), box, rtol=1e-15, atol=0, err_msg=str(row))


def test_priors_reach_beyond_the_image_and_are_not_cut() -> None:
    boxes = grid_boxes(mindspore_ssd300_levels())
    assert bool((boxes[:, 0] - boxes[:, 2] / 2 < 0).any())
    assert boxes.dtype == torch.float64
