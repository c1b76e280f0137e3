"""Suppression of proposals against torchvision's, box by box."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from detectors.suppression import suppress_by_rounds, suppress_sorted


def crowd(batch: int, count: int) -> tuple[Tensor, Tensor]:
    low = torch.rand(batch, count, 2) * 40
    boxes = torch.cat([low, low + 5 + 20 * torch.rand(batch, count, 2)], dim=-1)
    return boxes, torch.rand(batch, count) < 0.8


@pytest.mark.parametrize("suppress", [suppress_sorted, suppress_by_rounds])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_keeps_what_torchvision_keeps(suppress: object, threshold: float) -> None:
    torch.manual_seed(1)
    boxes, valid = crowd(4, 150)
    keep = suppress(boxes, valid, threshold)
    for image in range(4):
        rows = valid[image].nonzero().squeeze(1)
        falling = torch.arange(len(rows), 0, -1).float()
        want = rows[nms(boxes[image, rows], falling, threshold)]
        assert keep[image].nonzero().squeeze(1).tolist() == sorted(want.tolist())
        assert 0 < len(want) < len(rows)


@pytest.mark.parametrize("suppress", [suppress_sorted, suppress_by_rounds])
def test_a_chain_is_followed_to_its_end(suppress: object) -> None:
    # Each box overlaps its neighbours only, so every second one stays.
    x = torch.arange(60.0) * 10
    boxes = torch.stack([x, torch.zeros(60), x + 15, torch.full((60,), 10.0)], dim=-1)[None]
    keep = suppress(boxes, torch.ones(1, 60, dtype=torch.bool), 0.1)
    assert keep[0].tolist() == [True, False] * 30


@pytest.mark.parametrize("suppress", [suppress_sorted, suppress_by_rounds])
def test_nothing_valid_keeps_nothing(suppress: object) -> None:
    boxes, valid = crowd(2, 5)
    assert not suppress(boxes, torch.zeros_like(valid), 0.5).any()
    assert suppress(boxes[:, :0], valid[:, :0], 0.5).shape == (2, 0)


def test_is_one_operator_to_a_compiler() -> None:
    torch.library.opcheck(suppress_sorted, (*crowd(2, 9), 0.5))
