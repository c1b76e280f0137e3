from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detectors.losses import mined_cross_entropy, positive_smooth_l1, sigmoid_focal


def test_focal_by_hand() -> None:
    # Logit 0: p = 1/2, so an element is alpha_t * (1/2)**2 * ln 2.
    loss = sigmoid_focal(torch.zeros(1, 3), torch.tensor([1]), alpha=0.75, gamma=2.0)
    quarter = math.log(2) / 4
    torch.testing.assert_close(loss, torch.tensor([[0.25, 0.75, 0.25]]) * quarter)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_focal_and_its_gradient_agree_with_torchvision(gamma: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(40, 7, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.randint(0, 7, (40,), generator=generator)
    mine = sigmoid_focal(logits, labels, alpha=0.75, gamma=gamma)
    theirs = sigmoid_focal_loss(logits, F.one_hot(labels, 7).double(), alpha=0.75, gamma=gamma)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    weights = torch.rand(mine.shape, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((mine * weights).sum(), logits)
    (want,) = torch.autograd.grad((theirs * weights).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_finite_for_extreme_logits(gamma: float) -> None:
    logits = torch.tensor([[-1e4, -200.0, 200.0, 1e4]]).repeat(5, 1).requires_grad_()
    loss = sigmoid_focal(logits, torch.tensor([0, 1, 2, 3, -1]), alpha=0.75, gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # A sure and wrong answer costs alpha times its logit.
    torch.testing.assert_close(loss[0, 0].item(), 0.75 * 1e4)


def test_a_label_outside_marks_no_channel() -> None:
    logits = torch.tensor([[0.3, -1.2]])
    none = sigmoid_focal(logits, torch.tensor([-1]), alpha=0.75, gamma=2.0)
    target = torch.zeros(1, 2)
    torch.testing.assert_close(none, sigmoid_focal_loss(logits, target, alpha=0.75, gamma=2.0))


def test_smooth_l1_by_hand_only_where_positive() -> None:
    predicted = torch.tensor([[[0.5, -2.0, 0.0, 1.0], [9.0, 9.0, 9.0, 9.0]]], requires_grad=True)
    positive = torch.tensor([[True, False]])
    loss = positive_smooth_l1(predicted, torch.zeros(1, 2, 4), positive)
    # 0.5**2 / 2 + (2 - 0.5) + 0 + 1 / 2
    torch.testing.assert_close(loss, torch.tensor([[2.125, 0.0]]))
    loss.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[[0.5, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]]


def test_smooth_l1_beta_sets_where_the_quadratic_part_ends() -> None:
    loss = positive_smooth_l1(
        torch.tensor([[[0.05, 1.0, 0.0, 0.0]]]),
        torch.zeros(1, 1, 4),
        torch.tensor([[True]]),
        beta=0.1,
    )
    # 0.05**2 / (2 * 0.1) + (1 - 0.05)
    torch.testing.assert_close(loss, torch.tensor([[0.0125 + 0.95]]))


def mined_by_loop(logits: torch.Tensor, labels: torch.Tensor, ratio: float) -> torch.Tensor:
    """Sum over images of the losses of positives and of the worst negatives."""
    parts = []
    for row, target in zip(logits.double(), labels, strict=True):
        each = [torch.logsumexp(x, 0) - x[k] for x, k in zip(row, target.tolist(), strict=True)]
        positive = [e for e, k in zip(each, target.tolist(), strict=True) if k > 0]
        negative = [e for e, k in zip(each, target.tolist(), strict=True) if k == 0]
        worst = sorted(negative, key=lambda e: -e.item())[: int(ratio * len(positive))]
        parts += positive + worst
    return torch.stack(parts).sum()


@pytest.mark.parametrize("ratio", [3.0, 1.5, 100.0])
def test_mining_and_its_gradient_agree_with_a_loop(ratio: float) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(3, 30, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 4, (3, 30), generator=generator)
    labels = labels * (torch.rand(3, 30, generator=generator) < 0.2)
    labels[1] = 0
    loss = mined_cross_entropy(logits, labels, negative_ratio=ratio)
    assert not loss[1].any()
    want = mined_by_loop(logits, labels, ratio)
    torch.testing.assert_close(loss.sum(), want)
    (mine,) = torch.autograd.grad(loss.sum(), logits)
    (theirs,) = torch.autograd.grad(want, logits)
    torch.testing.assert_close(mine, theirs)


def test_equally_hard_negatives_are_taken_from_the_front() -> None:
    labels = torch.tensor([[0, 0, 1, 0, 0]])
    loss = mined_cross_entropy(torch.zeros(1, 5, 2), labels, negative_ratio=2.0)
    assert (loss > 0).tolist() == [[True, True, True, False, False]]
    torch.testing.assert_close(loss.sum().item(), 3 * math.log(2))


def test_sure_negatives_are_still_preferred_to_positives() -> None:
    # A loss of exactly 0 must not let a positive take a negative's place.
    logits = torch.tensor([[[500.0, 0.0], [500.0, 0.0], [0.0, 500.0]]])
    labels = torch.tensor([[0, 0, 1]])
    assert mined_cross_entropy(logits, labels, negative_ratio=1.0).tolist() == [[0.0, 0.0, 0.0]]
