"""From candidates to detections: threshold, non-maximum suppression and caps.

Every detector goes through :func:`postprocess`; what differs between published recipes is only the
:class:`PostprocessConfig`. Boxes are expected in pixels of the original image already, because the
recipes suppress there: with the ``plus_one`` convention the scale changes the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torchvision.ops import batched_nms

import native
from detectors.settings import Settings

if TYPE_CHECKING:
    from detectors.base import Candidates

_Unit = Annotated[float, Field(ge=0.0, le=1.0)]
_Cap = Annotated[int, Field(ge=1)] | None


class PostprocessConfig(Settings):
    """What turns scored boxes into detections; all values are part of a published result.

    Attributes:
        score_threshold: a box counts for a class if its score is strictly above this.
        nms: ``hard`` removes overlapping boxes, the soft modes decay their scores (Bodla et al.,
            ICCV 2017): linearly above the IoU threshold, or by ``exp(-iou**2 / sigma)``.
        iou_threshold: overlap strictly above which ``hard`` removes and ``soft_linear`` decays.
        sigma: width of the Gaussian decay; only ``soft_gaussian`` reads it.
        soft_score_threshold: a decayed score below this removes the box; soft modes only.
        plus_one: treat x2 and y2 as the last pixel inside, so that a width is x2 - x1 + 1.
        max_per_class: most detections of one class in one image.
        max_per_image: most detections in one image.
        class_agnostic: let boxes of different classes suppress each other.
    """

    score_threshold: _Unit = 0.05
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    iou_threshold: _Unit = 0.5
    sigma: Annotated[float, Field(gt=0.0)] = 0.5
    soft_score_threshold: _Unit = 0.001
    plus_one: bool = False
    max_per_class: _Cap = None
    max_per_image: _Cap = 100
    class_agnostic: bool = False


class ImageDetections(NamedTuple):
    """Detections of one image on the CPU, best first; equal scores by prior, then by class.

    Attributes:
        boxes: (M, 4) float32 xyxy, in whatever pixels the candidates were.
        scores: (M,) float32; decayed ones after soft suppression.
        labels: (M,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def postprocess(candidates: Candidates, config: PostprocessConfig) -> list[ImageDetections]:
    """Detections of every image of a batch.

    The threshold runs where the candidates are, over the whole batch at once; what passes goes to
    the CPU in one piece and is suppressed image by image.

    Args:
        candidates: boxes (N, A, 4) or (N, A, K, 4) and scores (N, A, K).
        config: the recipe.

    Returns:
        N items.
    """
    boxes, scores = candidates
    images, priors, classes = scores.shape
    hits = _above(scores, config.score_threshold)
    prior, label = hits // classes, hits % classes
    rows = boxes.reshape(-1, 4)[prior if boxes.dim() == 3 else hits]
    counts = torch.bincount(prior // priors, minlength=images).tolist()
    parts = zip(
        torch.split(rows.float().cpu(), counts),
        torch.split(scores.reshape(-1)[hits].float().cpu(), counts),
        torch.split(label.cpu(), counts),
        strict=True,
    )
    return [_of_image(*part, config) for part in parts]


def _above(scores: Tensor, threshold: float) -> Tensor:
    """(H,) int64 positions in the flat scores that are strictly above the threshold."""
    if scores.device.type == "cpu":
        # NumPy finds few hits among many 2 to 6 times as fast as torch does on one thread.
        return torch.from_numpy(np.flatnonzero(scores.detach().numpy() > threshold))
    return (scores > threshold).flatten().nonzero().squeeze(1)


def _of_image(
    boxes: Tensor, scores: Tensor, labels: Tensor, config: PostprocessConfig
) -> ImageDetections:
    """Suppress and cap the (M, 4) boxes of one image."""
    groups = torch.zeros_like(labels) if config.class_agnostic else labels
    keep, scores = _suppress(boxes, scores, groups, config)
    labels = labels[keep]
    if config.max_per_class is not None:
        few = _rank_in_class(labels) < config.max_per_class
        keep, scores, labels = keep[few], scores[few], labels[few]
    cap = config.max_per_image
    return ImageDetections(boxes=boxes[keep][:cap], scores=scores[:cap], labels=labels[:cap])


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, config: PostprocessConfig
) -> tuple[Tensor, Tensor]:
    """Indices of the surviving boxes and their scores, best first."""
    if config.nms == "hard" and not config.plus_one:
        # In float64, because classes are kept apart by offsets that would cost float32 its
        # fractions of a pixel. The order of equal scores is restored afterwards.
        keep = batched_nms(boxes.double(), scores.double(), groups, config.iou_threshold)
        keep = keep.sort().values
        keep = keep[scores[keep].argsort(descending=True, stable=True)]
        return keep, scores[keep]
    arrays = boxes.numpy(), scores.numpy(), groups.numpy()
    # Caps by class hold for true classes only; they are applied again after suppression, so that
    # passing them on merely lets the kernel stop early.
    caps = (None, None) if config.class_agnostic else (config.max_per_class, config.max_per_image)
    if config.nms == "hard":
        kept = native.nms(
            *arrays,
            iou_threshold=config.iou_threshold,
            plus_one=config.plus_one,
            max_per_class=caps[0],
            max_total=caps[1],
        )
        keep = torch.from_numpy(kept)
        return keep, scores[keep]
    kept, decayed = native.soft_nms(
        *arrays,
        method="linear" if config.nms == "soft_linear" else "gaussian",
        iou_threshold=config.iou_threshold,
        sigma=config.sigma,
        score_threshold=config.soft_score_threshold,
        plus_one=config.plus_one,
        max_per_class=caps[0],
        max_total=caps[1],
    )
    return torch.from_numpy(kept), torch.from_numpy(decayed)


def _rank_in_class(labels: Tensor) -> Tensor:
    """(M,) how many earlier rows have the same label."""
    ordered, order = labels.sort(stable=True)
    ranks = torch.arange(len(labels)) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(ranks).scatter(0, order, ranks)
