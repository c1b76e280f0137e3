"""Matching against hand-computed values and the loops of the published implementations."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

import native
from native import reference
from native.rules import Claims
from native.types import Bool, Float32, Int64

try:
    _compiled: Any = importlib.import_module("native._core")
except ImportError:
    _compiled = None


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(
            _compiled, id="native", marks=pytest.mark.skipif(not _compiled, reason="not compiled")
        ),
        pytest.param(reference, id="reference"),
    ],
)
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both implementations in turn behind the public function."""
    monkeypatch.setattr("native.matching.kernels", lambda: request.param)


#: Four unit cells of a row, and one prior that spans the first two.
PRIORS = np.array(
    [[0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], [3, 0, 4, 1], [0, 0, 2, 1]], dtype=np.float32
)


def _match(
    *boxes: tuple[float, float, float, float], threshold: float = 0.5, claims: Claims = "first"
) -> tuple[list[int], list[int]]:
    """Slots of the positive priors by prior, -1 where negative; and all slots."""
    array = np.array([boxes], dtype=np.float32).reshape(1, -1, 4)
    valid = np.ones(array.shape[:2], dtype=bool)
    box, positive = native.match_priors(array, valid, PRIORS, threshold=threshold, claims=claims)
    return np.where(positive, box, -1)[0].tolist(), box[0].tolist()


def test_priors_take_the_box_they_overlap_most() -> None:
    # IoU of the first box: cells 1/2, 1/2, span 1; of the second: the fourth cell alone, 1.
    assert _match((0, 0, 2, 1), (3, 0, 4, 1), threshold=0.4)[0] == [0, 0, -1, 1, 0]


@pytest.mark.parametrize(("claims", "expected"), [("first", -1), ("last", 0)])
def test_the_threshold_itself(claims: Claims, expected: int) -> None:
    assert _match((0, 0, 2, 1), threshold=0.5, claims=claims)[0] == [expected, expected, -1, -1, 0]


@pytest.mark.parametrize(("claims", "winner"), [("first", 0), ("last", 1)])
def test_two_boxes_claim_one_prior(claims: Claims, winner: int) -> None:
    # Both lie in the third cell; the first covers 0.6 of it and the second 0.3.
    found, _ = _match((2, 0, 2.6, 1), (2, 0, 2.3, 1), claims=claims)
    assert found == [-1, -1, winner, -1, -1]


def test_a_claim_beats_a_higher_overlap() -> None:
    # The span has IoU 1 with the first box and is claimed by it; the second box, IoU 2/3 with the
    # span and 1/3 with the first cell, claims the span too and so gets nothing of its own.
    first, _ = _match((0, 0, 2, 1), (0, 0, 2, 0.5), threshold=0.9, claims="first")
    last, _ = _match((0, 0, 2, 1), (0, 0, 2, 0.5), threshold=0.9, claims="last")
    assert (first[4], last[4]) == (0, 1)


def test_a_box_that_overlaps_nothing_claims_the_first_prior() -> None:
    assert _match((50, 50, 60, 60))[0] == [0, -1, -1, -1, -1]


def test_equal_overlaps_fall_to_the_first() -> None:
    found, slots = _match((0, 0, 2, 1), (0, 0, 2, 1), threshold=0.4)
    assert found == [0, 0, -1, -1, 0]
    assert slots == [0] * 5


def test_images_without_boxes_have_no_positive() -> None:
    boxes = np.zeros((2, 3, 4), dtype=np.float32)
    boxes[1, 2] = PRIORS[3]
    valid = np.array([[False] * 3, [False, False, True]])
    box, positive = native.match_priors(boxes, valid, PRIORS, threshold=0.0, claims="last")
    assert box.tolist() == [[0] * 5, [2] * 5]
    assert positive.tolist() == [[False] * 5, [True] * 5]


@pytest.mark.parametrize("shape", [(0, 2), (2, 0)])
def test_no_images_or_no_slots(shape: tuple[int, int]) -> None:
    box, positive = native.match_priors(
        np.zeros((*shape, 4), np.float32), np.zeros(shape, bool), PRIORS, threshold=0.5,
        claims="first",
    )  # fmt: skip
    assert box.shape == positive.shape == (shape[0], 5)
    assert not positive.any()


def _scene(seed: int) -> tuple[Float32, Bool, Float32]:
    """Ten cells a side with three shapes each, and up to eight boxes an image, some repeated."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:10, :10] / 10 + 0.05
    center = np.stack([columns, rows], -1).reshape(-1, 1, 2)
    half = np.array([[0.1, 0.1], [0.2, 0.1], [0.15, 0.3]]) / 2 * (1 + seed)
    priors = np.concatenate([center - half, center + half], -1).reshape(-1, 4).astype(np.float32)
    low = rng.integers(0, 16, (4, 8, 2)) / 20
    boxes = np.concatenate([low, low + rng.integers(1, 9, (4, 8, 2)) / 20], -1).astype(np.float32)
    boxes[:, 5] = boxes[:, 1]
    return boxes, rng.random((4, 8)) < 0.7, priors


def _last_claim(boxes: Float32, priors: Float32, threshold: float) -> tuple[Int64, Bool]:
    """After amdegroot/ssd.pytorch, layers/box_utils.py: `match`."""
    overlaps = box_iou(torch.tensor(boxes), torch.tensor(priors))
    best_prior = overlaps.max(1).indices
    best, box = overlaps.max(0)
    best.index_fill_(0, best_prior, 2)
    for slot in range(len(best_prior)):
        box[best_prior[slot]] = slot
    return box.numpy(), (best >= threshold).numpy()


def _first_claim(boxes: Float32, priors: Float32, threshold: float) -> tuple[Int64, Bool]:
    """After the MindSpore model zoo, research/cv/ssd/src/box_utils.py: `ssd_bboxes_encode`."""
    best = np.zeros(len(priors), dtype=np.float32)
    box = np.zeros(len(priors), dtype=np.int64)
    positive = np.zeros(len(priors), dtype=bool)
    for slot, row in enumerate(boxes):
        scores = box_iou(torch.tensor(row[None]), torch.tensor(priors))[0].numpy()
        scores[np.argmax(scores)] = 2.0
        mask = (scores > threshold) & (scores > best)
        positive |= mask
        box[mask] = slot
        best = np.maximum(best, scores)
    return box, positive


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("claims", ["first", "last"])
def test_equal_to_the_published_loops(seed: int, claims: Claims) -> None:
    boxes, valid, priors = _scene(seed)
    loop = _first_claim if claims == "first" else _last_claim
    box, positive = native.match_priors(boxes, valid, priors, threshold=0.5, claims=claims)
    for n in range(len(boxes)):
        slots = np.flatnonzero(valid[n])
        expected_box, expected = loop(boxes[n, slots], priors, 0.5)
        assert positive[n].tolist() == expected.tolist()
        assert box[n][expected].tolist() == slots[expected_box[expected]].tolist()


_ONE = np.zeros((1, 1, 4), dtype=np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": _ONE.astype(float)}, TypeError, "boxes is float64"),
        ({"boxes": _ONE[0]}, ValueError, "must have 3 dimension"),
        ({"boxes": _ONE[..., :3]}, ValueError, "its last dimension must be 4"),
        ({"valid": np.ones((1, 1), np.uint8)}, TypeError, "valid is uint8; it must be bool"),
        ({"valid": np.ones((1, 2), bool)}, ValueError, r"valid has shape \(1, 2\) for boxes"),
        (
            {"boxes": _ONE - np.array([0, 0, 1, 0], np.float32)},
            ValueError,
            r"boxes\[0, 0\] = .* inverted",
        ),
        ({"priors": PRIORS * np.float32(np.nan)}, ValueError, r"priors\[0\] = .* not finite"),
        ({"threshold": 1.5}, ValueError, "threshold=1.5"),
        ({"claims": "both"}, ValueError, "claims='both': allowed are first, last"),
        ({"threads": 0}, ValueError, "threads=0"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {
        "boxes": _ONE, "valid": np.ones((1, 1), bool), "priors": PRIORS, "threshold": 0.5,
        "claims": "first", **change,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        native.match_priors(**arguments)
