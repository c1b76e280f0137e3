from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from detectors.priors import Level, classic_ssd_levels, grid_boxes, mindspore_ssd300_levels


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


@pytest.mark.parametrize("recipe", ["voc", "coco"])
@pytest.mark.parametrize(
    ("size", "counts"),
    [(300, [5776, 2166, 600, 150, 36, 4]), (512, [16384, 6144, 1536, 384, 96, 16, 4])],
)
def test_classic_ssd_counts(recipe: Any, size: Any, counts: list[int]) -> None:
    assert [len(grid_boxes([level])) for level in classic_ssd_levels(recipe, size)] == counts
    assert sum(counts) == {300: 8732, 512: 24564}[size]


def test_coco_priors_at_300_are_torchvisions() -> None:
    generator = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]],
        scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
        steps=[8, 16, 32, 64, 100, 300],
    )
    cells = [[n, n] for n in (38, 19, 10, 5, 3, 1)]
    expected = generator._grid_default_boxes(cells, [300, 300])
    mine = grid_boxes(classic_ssd_levels("coco", 300)).float()
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-7)


def test_classic_ssd_rows_by_hand() -> None:
    root2, root3 = math.sqrt(2), math.sqrt(3)
    voc = grid_boxes(classic_ssd_levels("voc", 300))
    expected = {
        0: (4 / 300, 4 / 300, 0.1, 0.1),
        1: (4 / 300, 4 / 300, math.sqrt(30 * 60) / 300, math.sqrt(30 * 60) / 300),
        2: (4 / 300, 4 / 300, 0.1 * root2, 0.1 / root2),
        3: (4 / 300, 4 / 300, 0.1 / root2, 0.1 * root2),
        4: (12 / 300, 4 / 300, 0.1, 0.1),
        # first cell of the second map: six boxes
        5776 + 4: (8 / 300, 8 / 300, 0.2 * root3, 0.2 / root3),
        5776 + 5: (8 / 300, 8 / 300, 0.2 / root3, 0.2 * root3),
        # the last map: 0.88 * sqrt(2) is longer than the image and is cut
        8728: (0.5, 0.5, 0.88, 0.88),
        8729: (0.5, 0.5, math.sqrt(264 * 315) / 300, math.sqrt(264 * 315) / 300),
        8730: (0.5, 0.5, 1.0, 0.88 / root2),
        8731: (0.5, 0.5, 0.88 / root2, 1.0),
    }
    for row, box in expected.items():
        np.testing.assert_allclose(voc[row].numpy(), box, rtol=1e-15, atol=0, err_msg=str(row))
    large = grid_boxes(classic_ssd_levels("coco", 512))
    np.testing.assert_allclose(large[0].numpy(), (4 / 512, 4 / 512, 0.04, 0.04), rtol=1e-15)
    np.testing.assert_allclose(
        large[16384].numpy(), (8 / 512, 8 / 512, 0.1, 0.1), rtol=1e-15, atol=0
    )
