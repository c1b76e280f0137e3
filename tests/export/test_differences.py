"""What counts as a difference between two sides, on outputs written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.export.differences import Differences

IDS = [70, 71]


def measured(expected, found, **settings):
    known = Differences(**{"side": 100, "limit": 1e-3, **settings})
    known.add(
        IDS,
        {name: torch.tensor(value) for name, value in expected.items()},
        {name: np.array(value, np.float32) for name, value in found.items()},
    )
    return known


def side(raw, boxes, scores):
    """Two images of two rows and one class; the second image is always the same."""
    still = [[0.0, 0.0, 50.0, 50.0], [10.0, 10.0, 20.0, 20.0]]
    return {
        "raw_cls": [raw, [[1.0], [2.0]]],
        "boxes": [boxes, still],
        "scores": [scores, [[0.5], [0.25]]],
    }


BOXES = [[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]]


def test_outputs_are_subtracted_and_boxes_are_parts_of_the_input():
    moved = [[0.0, 0.0, 12.0, 10.0], [5.0, 5.0, 9.0, 8.0]]
    known = measured(
        side([[3.0], [4.0]], BOXES, [[0.5], [0.2]]),
        side([[3.0], [3.5]], moved, [[0.5], [0.1]]),
    )
    assert known.largest == pytest.approx({"raw_cls": 0.5, "boxes": 0.02, "scores": 0.1})
    assert known.where == {"raw_cls": 70, "boxes": 70, "scores": 70}
    assert known.lone["scores"].value == 0.0


def test_the_largest_of_all_batches_stays_with_its_image():
    known = Differences(side=1, limit=1e-3)
    zero = torch.zeros(2, 3)
    known.note("raw_cls", [1, 2], zero, zero + torch.tensor([[0.0], [0.25]]))
    known.note("raw_cls", [3, 4], zero, zero + torch.tensor([[0.125], [0.0]]))
    assert (known.largest, known.where) == ({"raw_cls": 0.25}, {"raw_cls": 2})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_on_one_side_is_no_small_difference(value):
    known = Differences(side=1, limit=1e-3)
    known.note("raw_cls", [1], torch.zeros(1, 2), torch.tensor([[0.0, value]]))
    known.note("raw_cls", [2], torch.zeros(1, 2), torch.zeros(1, 2))
    assert (known.largest["raw_cls"], known.where["raw_cls"]) == (float("inf"), 1)


def test_another_shape_is_no_small_difference():
    known = measured({"scores": [[[0.5]], [[0.5]]]}, {"scores": [[[0.5, 0.5]], [[0.5, 0.5]]]})
    assert known.largest == {"scores": float("inf")}


def test_a_score_left_out_on_one_side_is_counted_and_not_subtracted():
    known = measured(
        side([[3.0], [4.0]], BOXES, [[0.5], [0.2]]),
        side([[3.0], [4.0]], BOXES, [[0.5], [0.0]]),
    )
    assert known.largest["scores"] == 0.0
    assert (known.lone["scores"].part, known.lone["scores"].whole) == (1, 4)


def test_a_score_that_vanishes_in_rounding_is_not_lone():
    known = measured(
        side([[3.0], [4.0]], BOXES, [[0.5], [1e-30]]),
        side([[3.0], [4.0]], BOXES, [[0.5], [0.0]]),
    )
    assert known.lone["scores"].part == 0


def ranked(order, *, cls=(1.0, 2.0, 3.0), scores=(0.9, 0.8, 0.7)):
    """Three proposals in an order of their own; both images are the same."""
    proposals = [[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0], [60.0, 0.0, 90.0, 30.0]]

    def rows(values):
        return [[values[i] for i in order]] * 2

    return {
        "raw_proposals": rows(proposals),
        "raw_proposal_scores": rows(scores),
        "raw_cls": rows([[value] for value in cls]),
        "boxes": rows([[proposal] for proposal in proposals]),
        "scores": rows([[value / 4] for value in cls]),
    }


RANKED = ("proposals", "proposal_scores", "cls")


def test_rows_that_changed_places_are_the_same_rows():
    known = measured(ranked([0, 1, 2]), ranked([0, 2, 1]), ranked=RANKED)
    assert set(known.largest.values()) == {0.0}
    assert {name: share.value for name, share in known.lone.items()} == {
        "raw_proposals": 0.0,
        "scores": 0.0,
    }


def test_a_row_that_changed_places_is_still_compared():
    known = measured(ranked([0, 1, 2]), ranked([2, 1, 0], cls=(1.0, 2.5, 3.0)), ranked=RANKED)
    assert known.largest["raw_cls"] == 0.5
    assert known.largest["scores"] == 0.125
    assert known.largest["boxes"] == 0.0


def test_rows_of_one_side_alone_are_counted():
    known = measured(ranked([0, 1, 2]), ranked([0, 1, 1]), ranked=RANKED)
    # The third here has no partner there; there, every row has one here.
    assert (known.lone["raw_proposals"].part, known.lone["raw_proposals"].whole) == (2, 12)
    backwards = measured(ranked([0, 1, 1]), ranked([0, 1, 2]), ranked=RANKED)
    assert backwards.lone["raw_proposals"].part == 2


def test_a_proposal_of_another_score_is_another_one():
    known = measured(ranked([0, 1, 2]), ranked([0, 1, 2], scores=(0.9, 0.8, 0.6)), ranked=RANKED)
    assert known.lone["raw_proposals"].part == 4
