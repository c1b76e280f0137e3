"""Suppression of proposals against torchvision's, box by box."""

from __future__ import annotations

import os
import subprocess
import sys

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


#: The program for CUDA devices in Triton's interpreter, on boxes among which some just touch.
SCAN = """
import torch
from detectors.suppression import suppress_sorted
from detectors.suppression_scan import suppress_by_scan
torch.manual_seed(1)
low = (torch.rand(3, 90, 2) * 40).round()
boxes = torch.cat([low, low + 5 + (20 * torch.rand(3, 90, 2)).round()], dim=-1)
valid = torch.rand(3, 90) < 0.8
for threshold in (0.0, 0.3, 0.5, 0.7):
    want = suppress_sorted(boxes, valid, threshold)
    assert 0 < want.sum() < valid.sum()
    assert torch.equal(suppress_by_scan(boxes, valid, threshold), want), threshold
nothing = torch.zeros_like(valid)
assert not suppress_by_scan(boxes, nothing, 0.5).any()
assert suppress_by_scan(boxes[:, :0], valid[:, :0], 0.5).shape == (3, 0)
"""


def test_the_program_for_cuda_devices_keeps_what_the_kernel_keeps() -> None:
    pytest.importorskip("triton", reason="Triton, which torch has on CUDA machines, is not here")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCAN], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("links", [61, 200])
def test_rounds_leave_out_what_is_beyond_their_number(links: int) -> None:
    x = torch.arange(float(links)) * 10
    boxes = torch.stack([x, torch.zeros(links), x + 15, torch.full((links,), 10.0)], dim=-1)[None]
    keep = suppress_by_rounds(boxes, torch.ones(1, links, dtype=torch.bool), 0.1)
    exact = [True, False] * (links // 2) + [True] * (links % 2)
    # 63 rounds are right about the first 63 boxes, and keep none of which they are not sure.
    assert keep[0].tolist() == [kept and at < 63 for at, kept in enumerate(exact)]
