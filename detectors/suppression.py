"""Non-maximum suppression inside a network: shapes stay fixed, one call serves the whole batch.

What leaves the network is suppressed by :mod:`detectors.postprocess`; this is for proposals, which
the second stage of a detector goes on computing with.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import native
from detectors.boxes import pairwise_iou
from detectors.operators import operator

#: Types of devices that run Triton's programs; who places networks on one says so.
BY_SCAN: set[str] = set()

#: Longest chain of boxes, each of which decides over the next, that is followed to its end without
#: asking the device whether it has ended. Odd, see :func:`suppress_by_rounds`.
_ROUNDS = 63


@operator("detectors::suppress_sorted")
def suppress_sorted(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """Which boxes greedy suppression keeps; an operator of its own to compilers and exporters.

    Args:
        boxes: (B, P, 4) float32 xyxy, finite, best first.
        valid: (B, P) bool; other slots neither survive nor suppress.
        iou_threshold: a box goes if its IoU with a better box that stays is strictly above this.

    Returns:
        (B, P) bool.
    """
    if boxes.device.type == "cpu":
        return _suppress_by_kernel(boxes, valid, iou_threshold)
    if boxes.device.type in BY_SCAN:
        # Here, because importing Triton takes its time and not every device has it.
        from detectors.suppression_scan import suppress_by_scan

        return suppress_by_scan(boxes, valid, iou_threshold)
    return suppress_by_rounds(boxes, valid, iou_threshold)


@suppress_sorted.register_fake
def _(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid)


def suppress_by_rounds(
    boxes: Tensor, valid: Tensor, iou_threshold: float, *, rounds: int = _ROUNDS
) -> Tensor:
    """:func:`suppress_sorted` in whole-tensor operations and without a look at their results.

    A box stays if no better box that stays overlaps it. Starting from all boxes and applying this
    again and again, the best t boxes are right after t rounds, whatever the others are, so the
    fixed point is the greedy result. It is reached after as many rounds as the longest chain of
    boxes of which each decides over the next, usually a handful. Rounds give more boxes than the
    result and fewer in turns; the last one gives fewer, so what is beyond ``rounds`` links of a
    chain is left out.

    Args:
        boxes, valid, iou_threshold: as there.
        rounds: how many, odd.
    """
    count = boxes.shape[1]
    better = torch.ones(count, count, dtype=torch.bool, device=boxes.device).triu(1)
    # As numbers: a product of matrices reads them once and keeps nothing.
    overlaps = ((pairwise_iou(boxes, boxes) > iou_threshold) & better).float()
    keep = valid
    for _ in range(min(rounds, count | 1)):
        overlapped = torch.bmm(keep.unsqueeze(1).float(), overlaps).squeeze(1) > 0
        keep = valid & ~overlapped
    return keep.clone()


def _suppress_by_kernel(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """:func:`suppress_sorted` by the compiled kernel, faster on a CPU."""
    mask = valid.numpy()
    rows = np.flatnonzero(mask)
    # The kernel sorts by score: falling numbers keep the order that is there.
    falling = np.broadcast_to(-np.arange(mask.shape[1], dtype=np.float32), mask.shape)
    kept, _ = native.nms_batch(
        boxes.numpy().reshape(-1, 4)[rows],
        falling.reshape(-1)[rows],
        np.zeros(len(rows), dtype=np.int64),
        np.concatenate([[0], mask.sum(1).cumsum()]).astype(np.int64),
        iou_threshold=iou_threshold,
    )
    keep = np.zeros(mask.shape, dtype=np.bool_)
    keep.reshape(-1)[rows[kept]] = True
    return torch.from_numpy(keep)
