"""Assignment of ground truth to priors, for a whole padded batch at once.

Published rules are written as a loop over boxes in which later boxes may or may not displace
earlier ones. Each is stated here as one maximum over boxes with a defined winner on ties, so that
the result does not depend on the order of execution.

On a CPU the matrix of all overlaps of a padded batch costs more than the loop it replaces, so
:func:`match_boxes` goes through :mod:`native` there, with equal results.

Overlaps are taken of as many images at a time as :data:`MOST_PAIRS` allows. At its peak an
assignment holds about six tensors of so many values, 0.8 GB, whatever the batch; one image of
RetinaNet on SpineNet-143 with 100 boxes takes 0.7 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

import native
from detectors.boxes import pairwise_iou
from detectors.config import BandClaims
from detectors.operators import operator
from detectors.structures import Targets
from native import Claims


class Match(NamedTuple):
    """Which box each prior is responsible for.

    Attributes:
        box: (N, A) int64 slot of the matched box; meaningless where not positive.
        positive: (N, A) bool.
    """

    box: Tensor
    positive: Tensor


class Assignment(NamedTuple):
    """What each prior is an example of; neither positive nor negative: ignored.

    Attributes:
        box: (N, A) int64 slot of its box; meaningless where not positive.
        positive: (N, A) bool.
        negative: (N, A) bool.
    """

    box: Tensor
    positive: Tensor
    negative: Tensor


#: Score of a prior that a box claims as its best, above every IoU.
_CLAIMED = 2.0

#: Most pairs of a box and a prior whose overlaps are in memory at once, unless those of a single
#: image are more: 32 M, 134 MB.
MOST_PAIRS = 1 << 25

_Found = TypeVar("_Found", Match, Assignment)


def match_by_images(
    boxes: Tensor,
    priors: Tensor,
    rule: Callable[[Tensor, slice], _Found],
    *,
    plus_one: bool = False,
) -> _Found:
    """What a rule finds in the overlaps of boxes and priors, some images at a time.

    Args:
        boxes: (N, G, 4) xyxy.
        priors: (A, 4), or (N, A, 4) where each image has its own, in the same unit.
        rule: gets the IoU (n, G, A) of a slice of the images, and the slice.
        plus_one: see :func:`~detectors.boxes.pairwise_iou`.
    """

    def of(images: slice) -> _Found:
        own = priors if priors.dim() == 2 else priors[images]
        return rule(pairwise_iou(boxes[images], own, plus_one=plus_one), images)

    images, slots = boxes.shape[:2]
    size = max(1, MOST_PAIRS // max(1, slots * priors.shape[-2]))
    if size >= images:
        return of(slice(None))
    parts = [of(slice(first, first + size)) for first in range(0, images, size)]
    return type(parts[0])(*(torch.cat(column) for column in zip(*parts, strict=True)))


def match_boxes(
    boxes: Tensor, valid: Tensor, priors: Tensor, *, threshold: float, claims: Claims
) -> Match:
    """The box each prior is responsible for, by whichever way is fast where the boxes are.

    Args:
        boxes: (N, G, 4) xyxy, at least one slot; anything where not valid.
        valid: (N, G) bool.
        priors: (A, 4) xyxy in the same unit.
        threshold: IoU from which a prior that no box claims is positive.
        claims: ``first`` is :func:`match_first_claim`, ``last`` is :func:`match_last_claim`.
    """
    if boxes.device.type == "cpu":
        proper = boxes.masked_fill(~valid.unsqueeze(-1), 0.0).float()
        return Match(*_match_natively(proper, valid, priors.float(), threshold, claims))
    return _match_in_torch(boxes, valid, priors, threshold, claims)


def _match_in_torch(
    boxes: Tensor, valid: Tensor, priors: Tensor, threshold: float, claims: str
) -> Match:
    rule = match_first_claim if claims == "first" else match_last_claim
    return match_by_images(
        boxes, priors, lambda iou, images: rule(iou, valid[images], threshold=threshold)
    )


@operator("detectors::match_natively", device_types="cpu")
def _match_natively(
    boxes: Tensor, valid: Tensor, priors: Tensor, threshold: float, claims: str
) -> tuple[Tensor, Tensor]:
    sides = boxes[..., 2:] - boxes[..., :2]
    if not bool(boxes.isfinite().all() & (sides >= 0).all()):
        # The kernels refuse these; here they have to reach the loss, which the step is judged by.
        match = _match_in_torch(boxes, valid, priors, threshold, claims)
        return match.box, match.positive
    box, positive = native.match_priors(
        boxes.numpy(),
        valid.numpy(),
        priors.numpy(),
        threshold=threshold,
        claims="first" if claims == "first" else "last",
    )
    return torch.from_numpy(box), torch.from_numpy(positive)


@_match_natively.register_fake
def _(
    boxes: Tensor, valid: Tensor, priors: Tensor, threshold: float, claims: str
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], priors.shape[0])
    return valid.new_empty(shape, dtype=torch.int64), valid.new_empty(shape)


def match_first_claim(iou: Tensor, valid: Tensor, *, threshold: float) -> Match:
    """SSD matching of the MindSpore model zoo.

    The reference visits boxes in order. Each scores every prior with their IoU, its best prior
    (the first, on equal IoU) with 2; it takes the priors where its score is above ``threshold``
    and strictly above that of every earlier box. So a prior ends with the box of highest score,
    the earliest on ties, and a box whose best prior an earlier box claimed does not get that one.

    Args:
        iou: (N, G, A) IoU of boxes and priors.
        valid: (N, G) bool, at least one slot; the slots that hold boxes.
        threshold: IoU a prior must exceed unless it is a box's best.
    """
    claims = torch.full_like(iou[:, :, :1], _CLAIMED)
    score, box = _highest(iou, valid, claims)
    return Match(box=box, positive=score > threshold)


def match_last_claim(iou: Tensor, valid: Tensor, *, threshold: float) -> Match:
    """SSD matching of the original implementation and of its descendants, M2Det among them.

    Each prior takes the box of highest IoU, the first on ties, and is positive if that IoU is at
    least ``threshold``. Then each box, in order, takes its best prior whatever its IoU, so that of
    two boxes with the same best prior the later one gets it.
    Source: amdegroot/ssd.pytorch, layers/box_utils.py.

    Args:
        iou: (N, G, A) IoU of boxes and priors.
        valid: (N, G) bool, at least one slot; the slots that hold boxes.
        threshold: least IoU of a positive prior that is not a box's best.
    """
    slots = torch.arange(iou.shape[1], device=iou.device, dtype=iou.dtype)
    claims = (_CLAIMED + slots).view(1, -1, 1).expand(len(iou), -1, 1)
    score, box = _highest(iou, valid, claims)
    return Match(box=box, positive=score >= threshold)


def match_with_band(
    iou: Tensor,
    valid: Tensor,
    usable: Tensor,
    *,
    positive_iou: float,
    negative_iou: float,
    claims: BandClaims,
    claim_iou: float,
) -> Assignment:
    """Matching with two thresholds, of anchors and proposals.

    One takes the box of highest IoU, the first on ties, and is positive from ``positive_iou``,
    negative below ``negative_iou``. Then every box claims all those that share its highest IoU, if
    that is at least ``claim_iou`` and not 0: they become positive, for the box they overlap most
    (torchvision) or for the last box that claims them (mmdetection and the MindSpore model zoo).

    Args:
        iou: (N, G, A), at least one slot.
        valid: (N, G) bool, the slots that hold boxes.
        usable: (N, A) or (1, A) bool; the rest is ignored, and claimed by no box.
        positive_iou, negative_iou: the thresholds.
        claims: what boxes do about those they overlap most.
        claim_iou: least IoU of a claim.
    """
    scores = iou.masked_fill(~(valid.unsqueeze(2) & usable.unsqueeze(1)), -1.0)
    best, box = scores.max(dim=1)
    positive = (best >= positive_iou) & usable
    negative = (best < negative_iou) & usable
    if claims != "none":
        highest = scores.amax(dim=2, keepdim=True)
        claimed = (scores == highest) & (highest >= claim_iou) & (highest > 0)
        if claims == "last_box":
            slots = torch.arange(1, iou.shape[1] + 1, device=iou.device, dtype=torch.int32)
            last = torch.where(claimed, slots.view(1, -1, 1), 0).amax(dim=1)
            box = torch.where(last > 0, last.long() - 1, box)
        any_claim = claimed.any(dim=1)
        positive, negative = positive | any_claim, negative & ~any_claim
    return Assignment(box=box, positive=positive, negative=negative)


def _highest(iou: Tensor, valid: Tensor, claims: Tensor) -> tuple[Tensor, Tensor]:
    """Score and slot, both (N, A), of the box with the highest score for each prior.

    A box scores a prior with their IoU, its best prior with ``claims`` (N, G, 1), and a slot
    without a box scores below all of them.
    """
    scores = iou.masked_fill(~valid.unsqueeze(-1), -1.0)
    # torch.max gives the first of equal values, which is what every rule here asks for.
    best_prior = scores.max(dim=2, keepdim=True).indices
    scores = scores.scatter(2, best_prior, claims.masked_fill(~valid.unsqueeze(-1), -1.0))
    score, box = scores.max(dim=1)
    return score, box


def take_boxes(targets: Targets, match: Match | Assignment) -> tuple[Tensor, Tensor]:
    """Matched boxes (N, A, 4) and labels (N, A) of every prior, arbitrary where not positive."""
    images, slots = targets.labels.shape
    # Rows of one table: on a CPU several times as fast as a gather along the slots.
    first = torch.arange(images, device=match.box.device).unsqueeze(1) * slots
    rows = (match.box + first).flatten()
    boxes = targets.boxes.flatten(0, 1).index_select(0, rows)
    labels = targets.labels.flatten().index_select(0, rows)
    return boxes.view(*match.box.shape, 4), labels.view(match.box.shape)


def with_a_slot(targets: Targets) -> Targets:
    """The same targets with at least one box slot, an empty one if there was none."""
    if targets.boxes.shape[1] > 0:
        return targets
    count = targets.boxes.shape[0]
    return Targets(
        boxes=targets.boxes.new_zeros(count, 1, 4),
        labels=targets.labels.new_zeros(count, 1),
        valid=targets.valid.new_zeros(count, 1),
    )
