from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.models.detection._utils import SSDMatcher

from detectors import matching
from detectors.boxes import pairwise_iou
from detectors.coding import decode, encode
from detectors.matching import (
    Match,
    match_by_images,
    match_first_claim,
    match_last_claim,
    match_with_band,
    take_boxes,
    with_a_slot,
)
from detectors.structures import Targets


def visit_in_order(
    iou: NDArray[np.float32], valid: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The published loop for one image, (G, A) IoU: the oracle of the batched formulation."""
    priors = iou.shape[1]
    best = np.zeros(priors, np.float32)
    owner = np.full(priors, -1)
    for slot in np.flatnonzero(valid):
        scores = iou[slot].copy()
        scores[np.argmax(scores)] = 2.0
        for prior in range(priors):
            if scores[prior] > threshold and scores[prior] > best[prior]:
                best[prior], owner[prior] = scores[prior], slot
    return owner, owner >= 0


def match(rows: list[list[float]], threshold: float = 0.5) -> list[int]:
    """Owner of each prior of one image without padding, -1 for none."""
    iou = torch.tensor([rows])
    found = match_first_claim(iou, torch.ones(iou.shape[:2], dtype=torch.bool), threshold=threshold)
    return torch.where(found.positive, found.box, -1)[0].tolist()


def test_threshold_is_strict() -> None:
    assert match([[0.9, 0.5, 0.5 + 1e-6]]) == [0, -1, 0]


def test_a_box_takes_its_best_prior_below_the_threshold() -> None:
    assert match([[0.1, 0.2, 0.0]]) == [-1, 0, -1]


def test_a_box_that_meets_no_prior_takes_the_first() -> None:
    assert match([[0.0, 0.0, 0.0]]) == [0, -1, -1]


def test_equal_best_priors_give_the_first() -> None:
    assert match([[0.1, 0.4, 0.4]]) == [-1, 0, -1]


def test_two_boxes_with_one_best_prior_leave_it_to_the_earlier() -> None:
    # The later box has the larger IoU, but 2 is not above 2; it gets only what exceeds 0.5.
    assert match([[0.6, 0.1, 0.1], [0.9, 0.3, 0.2]]) == [0, -1, -1]
    assert match([[0.6, 0.1, 0.1], [0.9, 0.3, 0.7]]) == [0, -1, 1]


def test_a_claim_beats_a_larger_iou_of_any_other_box() -> None:
    assert match([[0.95, 0.99], [0.8, 0.2]]) == [1, 0]
    assert match([[0.8, 0.2], [0.95, 0.99]]) == [0, 1]


def test_larger_iou_wins_and_equal_iou_stays_with_the_earlier() -> None:
    # Each box has a best prior of its own; prior 2 is contested.
    assert match([[0.9, 0.0, 0.6], [0.0, 0.9, 0.7]]) == [0, 1, 1]
    assert match([[0.9, 0.0, 0.7], [0.0, 0.9, 0.6]]) == [0, 1, 0]
    assert match([[0.9, 0.0, 0.7], [0.0, 0.9, 0.7]]) == [0, 1, 0]


def test_padding_never_matches_whatever_it_holds() -> None:
    iou = torch.tensor([[[0.9, 0.8], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[True, False], [False, False]])
    found = match_first_claim(iou, valid, threshold=0.5)
    assert found.positive.tolist() == [[True, True], [False, False]]
    assert found.box[0].tolist() == [0, 0]


@pytest.mark.parametrize("seed", range(20))
def test_batches_equal_the_loop_also_where_scores_tie(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, slots, priors = 5, 8, 40
    # Few distinct values: most maxima are ties, most best priors collide.
    iou = rng.choice(np.array([0, 0.1, 0.5, 0.6, 0.7], np.float32), (images, slots, priors))
    valid = rng.random((images, slots)) < rng.random()
    found = match_first_claim(torch.from_numpy(iou), torch.from_numpy(valid), threshold=0.5)
    for image in range(images):
        owner, positive = visit_in_order(iou[image], valid[image], 0.5)
        np.testing.assert_array_equal(found.positive[image].numpy(), positive)
        np.testing.assert_array_equal(found.box[image].numpy()[positive], owner[positive])


def force_in_order(
    iou: NDArray[np.float32], valid: NDArray[np.bool_], threshold: float
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The original rule for one image, as its sources write it."""
    owner, score = np.zeros(iou.shape[1], np.int64), np.full(iou.shape[1], -1.0)
    for slot in np.flatnonzero(valid):
        better = iou[slot] > score
        owner[better], score[better] = slot, iou[slot][better]
    for slot in np.flatnonzero(valid):
        owner[np.argmax(iou[slot])], score[np.argmax(iou[slot])] = slot, 2.0
    return owner, score >= threshold


def test_of_two_claims_the_later_wins_and_the_threshold_is_not_strict() -> None:
    iou = torch.tensor([[[0.9, 0.5, 0.3], [0.6, 0.1, 0.49]]])
    found = match_last_claim(iou, torch.ones(1, 2, dtype=torch.bool), threshold=0.5)
    assert found.box[0, :2].tolist() == [1, 0]
    assert found.positive.tolist() == [[True, True, False]]


@pytest.mark.parametrize("seed", range(20))
def test_original_rule_equals_its_loop_also_where_scores_tie(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    iou = rng.choice(np.array([0, 0.1, 0.5, 0.6, 0.7], np.float32), (5, 8, 40))
    valid = rng.random((5, 8)) < rng.random()
    found = match_last_claim(torch.from_numpy(iou), torch.from_numpy(valid), threshold=0.5)
    for image in range(5):
        owner, positive = force_in_order(iou[image], valid[image], 0.5)
        np.testing.assert_array_equal(found.positive[image].numpy(), positive)
        np.testing.assert_array_equal(found.box[image].numpy()[positive], owner[positive])


@pytest.mark.parametrize("seed", range(5))
def test_original_rule_equals_torchvisions_matcher(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    iou = torch.rand(1, 6, 50, generator=generator) * 0.8
    found = match_last_claim(iou, torch.ones(1, 6, dtype=torch.bool), threshold=0.5)
    want = SSDMatcher(0.5)(iou[0])
    assert torch.equal(found.positive[0], want >= 0)
    assert torch.equal(found.box[0][want >= 0], want[want >= 0])


def test_taking_boxes_follows_the_match() -> None:
    targets = Targets(
        boxes=torch.arange(16.0).reshape(2, 2, 4),
        labels=torch.tensor([[3, 4], [5, 6]]),
        valid=torch.ones(2, 2, dtype=torch.bool),
    )
    chosen = Match(box=torch.tensor([[1, 0, 1], [0, 0, 1]]), positive=torch.ones(2, 3).bool())
    boxes, labels = take_boxes(targets, chosen)
    assert labels.tolist() == [[4, 3, 4], [5, 5, 6]]
    assert boxes[0, 0].tolist() == [4, 5, 6, 7]
    assert boxes[1, 2].tolist() == [12, 13, 14, 15]


def test_targets_without_slots_get_one_empty_slot() -> None:
    none = Targets(
        boxes=torch.zeros(3, 0, 4),
        labels=torch.zeros(3, 0, dtype=torch.int64),
        valid=torch.zeros(3, 0, dtype=torch.bool),
    )
    padded = with_a_slot(none)
    assert padded.boxes.shape == (3, 1, 4)
    assert padded.labels.dtype == torch.int64
    assert not padded.valid.any()
    assert with_a_slot(padded) is padded


def test_encoding_by_hand() -> None:
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    box = torch.tensor([[0.52, 0.46, 0.4, 0.2]])
    # (0.02 / 0.2) / 0.1 = 1, (-0.04 / 0.4) / 0.1 = -1, ln 2 / 0.2, -ln 2 / 0.2
    half = 3.4657359027997265
    torch.testing.assert_close(encode(box, prior), torch.tensor([[1.0, -1.0, half, -half]]))
    torch.testing.assert_close(decode(encode(box, prior), prior), box)


def test_a_box_without_area_has_a_finite_code() -> None:
    prior = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    code = encode(torch.zeros(1, 4), prior)
    # ln(1e-6) / 0.2
    torch.testing.assert_close(code[0, 2:], torch.full((2,), -69.07755278982137))


@pytest.mark.parametrize("own_priors", [False, True])
@pytest.mark.parametrize("pairs", [1, 7 * 30, 2 * 7 * 30, 10**9])
def test_some_images_at_a_time_match_as_all_together(
    pairs: int, own_priors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(6)
    low = torch.rand(5, 37, 2) * 30
    drawn = torch.cat([low, low + 5 + 20 * torch.rand(5, 37, 2)], dim=-1)
    boxes, valid = drawn[:, :7], torch.rand(5, 7) < 0.7
    priors = drawn[:, 7:] if own_priors else drawn[0, 7:]
    usable = torch.rand(5, 30) < 0.9

    def rule(iou: torch.Tensor, images: slice) -> matching.Assignment:
        return match_with_band(
            iou,
            valid[images],
            usable[images],
            positive_iou=0.5,
            negative_iou=0.3,
            claims="last_box",
            claim_iou=0.1,
        )

    whole = rule(pairwise_iou(boxes, priors), slice(None))
    assert 0 < whole.positive.sum() < whole.negative.sum()
    monkeypatch.setattr(matching, "MOST_PAIRS", pairs)
    for found, expected in zip(match_by_images(boxes, priors, rule), whole, strict=True):
        assert torch.equal(found, expected)
