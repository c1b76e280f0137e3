"""Examples for both stages: matching with two thresholds, then a random draw of fixed size.

Draws come from torch's global generator, which a training step seeds with its number; on the
device the tensors are on, so that nothing waits for the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectors.faster_rcnn.config import AssignmentConfig


class Assignment(NamedTuple):
    """What each anchor or proposal is an example of; neither positive nor negative: ignored.

    Attributes:
        box: (N, A) int64 slot of its box; meaningless where not positive.
        positive: (N, A) bool.
        negative: (N, A) bool.
    """

    box: Tensor
    positive: Tensor
    negative: Tensor


class Samples(NamedTuple):
    """Anchors or proposals that were drawn.

    Attributes:
        rows: (N, S) int64 which; arbitrary where not valid.
        valid: (N, S) bool.
        positive: (N, S) bool.
    """

    rows: Tensor
    valid: Tensor
    positive: Tensor


def assign(iou: Tensor, valid: Tensor, usable: Tensor, config: AssignmentConfig) -> Assignment:
    """Match anchors or proposals with boxes.

    One takes the box of highest IoU, the first on ties, and is positive from ``positive_iou``,
    negative below ``negative_iou``. Then every box claims all those that share its highest IoU, if
    that is at least ``claim_iou`` and not 0: they become positive, for the box they overlap most
    (torchvision) or for the last box that claims them (mmdetection and the MindSpore model zoo).

    Args:
        iou: (N, G, A), at least one slot.
        valid: (N, G) bool, the slots that hold boxes.
        usable: (N, A) or (1, A) bool; the rest is ignored.
        config: thresholds and claims.
    """
    scores = iou.masked_fill(~(valid.unsqueeze(2) & usable.unsqueeze(1)), -1.0)
    best, box = scores.max(dim=1)
    positive = (best >= config.positive_iou) & usable
    negative = (best < config.negative_iou) & usable
    if config.claims != "none":
        highest = scores.amax(dim=2, keepdim=True)
        claimed = (scores == highest) & (highest >= config.claim_iou) & (highest > 0)
        if config.claims == "last_box":
            slots = torch.arange(1, iou.shape[1] + 1, device=iou.device).view(1, -1, 1)
            last = torch.where(claimed, slots, 0).amax(dim=1)
            box = torch.where(last > 0, last - 1, box)
        any_claim = claimed.any(dim=1)
        positive, negative = positive | any_claim, negative & ~any_claim
    return Assignment(box=box, positive=positive, negative=negative)


def draw(found: Assignment, keys: Tensor, config: AssignmentConfig) -> Samples:
    """Draw examples: positives up to their share, then negatives until ``samples`` are there.

    Args:
        found: what can be drawn.
        keys: (N, A) uniform in [0, 1); the smallest are drawn.
        config: how many.

    Returns:
        As many slots as ``samples``, or as anchors if those are fewer.
    """
    slots = min(config.samples, keys.shape[1])
    most = min(int(config.samples * config.positive_fraction), keys.shape[1])
    # A chosen positive keeps its key, below 1; negatives follow from 1 to 2; 3 is never taken.
    first = torch.where(found.positive, keys, 3.0).topk(most, dim=1, largest=False, sorted=False)
    chosen = torch.full_like(keys, 3.0).scatter(1, first.indices, first.values)
    order = torch.where(found.negative, keys + 1.0, chosen)
    taken = order.topk(slots, dim=1, largest=False)
    return Samples(rows=taken.indices, valid=taken.values < 2.0, positive=taken.values < 1.0)
