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


@torch.library.custom_op("detectors::suppress_sorted", mutates_args=())
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
    return suppress_by_rounds(boxes, valid, iou_threshold)


@suppress_sorted.register_fake
def _(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    return torch.empty_like(valid)


def suppress_by_rounds(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """:func:`suppress_sorted` in whole-tensor operations, for devices that like those.

    A box stays if no better box that stays overlaps it. Starting from all boxes and applying this
    again and again, the best t boxes are right after t rounds, whatever the others are, so the
    fixed point is the greedy result. It is reached after as many rounds as the longest chain of
    boxes of which each decides over the next, usually a handful.
    """
    better = torch.ones(boxes.shape[1], boxes.shape[1], dtype=torch.bool, device=boxes.device)
    overlaps = (pairwise_iou(boxes, boxes) > iou_threshold) & better.triu(1)
    keep = valid
    while True:
        following = valid & ~(overlaps & keep.unsqueeze(2)).any(1)
        if torch.equal(following, keep):
            return keep.clone()
        keep = following


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
