"""Examples for both stages: matching with two thresholds, then a random draw of fixed size.

Draws come from torch's global generator, which a training step seeds with its number (see
:mod:`detectors.draws`); on the device the tensors are on, so that nothing waits for the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectors.faster_rcnn.config import AssignmentConfig
from detectors.matching import Assignment, match_with_band


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
    """Match anchors or proposals with boxes; see :func:`~detectors.matching.match_with_band`.

    Args:
        iou: (N, G, A), at least one slot.
        valid: (N, G) bool, the slots that hold boxes.
        usable: (N, A) or (1, A) bool; the rest is ignored.
        config: thresholds and claims.
    """
    return match_with_band(
        iou,
        valid,
        usable,
        positive_iou=config.positive_iou,
        negative_iou=config.negative_iou,
        claims=config.claims,
        claim_iou=config.claim_iou,
    )


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
