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
from torch.nn import functional as F

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
        top_k_per_class: best boxes of each class of an image that suppression gets to see.
        nms: ``hard`` removes overlapping boxes, the soft modes decay their scores (Bodla et al.,
            ICCV 2017): linearly above the IoU threshold, or by ``exp(-iou**2 / sigma)``.
        iou_threshold: overlap strictly above which ``hard`` removes and ``soft_linear`` decays.
        sigma: width of the Gaussian decay; only ``soft_gaussian`` reads it.
        soft_score_threshold: a decayed score below this removes the box; soft modes only.
        plus_one: treat x2 and y2 as the last pixel inside, so that a width is x2 - x1 + 1.
        max_per_class: most detections of one class in one image.
        max_per_image: most detections in one image.
        class_agnostic: treat all classes as one, in suppression and in the limits per class.
    """

    score_threshold: _Unit = 0.05
    top_k_per_class: _Cap = None
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


#: Names of the suppression modes in the kernels.
_METHODS: dict[str, native.Method] = {
    "hard": "hard",
    "soft_linear": "linear",
    "soft_gaussian": "gaussian",
}


@torch.no_grad()
def postprocess(candidates: Candidates, config: PostprocessConfig) -> list[ImageDetections]:
    """Detections of every image of a batch.

    The threshold runs where the candidates are, over the whole batch at once; what passes goes to
    the CPU in one piece and is suppressed in one call.

    Args:
        candidates: boxes (N, A, 4) or (N, A, K, 4) and scores (N, A, K). A score that is NaN and a
            box that is not finite, as a diverged network gives them, are no detections.
        config: the recipe.

    Returns:
        N items.
    """
    boxes, scores = candidates
    images, priors, classes = scores.shape
    hits = _above(scores, config.score_threshold)
    rows = boxes.reshape(-1, 4)[hits // classes if boxes.dim() == 3 else hits].float().cpu()
    values = scores.reshape(-1)[hits].float().cpu()
    finite = rows.isfinite().all(1)
    rows, values, hits = rows[finite], values[finite], hits.cpu()[finite]
    labels = hits % classes
    counts = torch.bincount(hits // (priors * classes), minlength=images)
    kept, decayed, offsets = native.soft_nms_batch(
        rows.numpy(),
        values.numpy(),
        (torch.zeros_like(labels) if config.class_agnostic else labels).numpy(),
        F.pad(counts.cumsum(0), (1, 0)).numpy(),
        method=_METHODS[config.nms],
        iou_threshold=config.iou_threshold,
        sigma=config.sigma,
        score_threshold=0.0 if config.nms == "hard" else config.soft_score_threshold,
        plus_one=config.plus_one,
        top_k_per_class=config.top_k_per_class,
        max_per_class=config.max_per_class,
        max_total=config.max_per_image,
    )
    keep = torch.from_numpy(kept)
    sizes = np.diff(offsets).tolist()
    parts = zip(
        torch.split(rows[keep], sizes),
        torch.split(torch.from_numpy(decayed), sizes),
        torch.split(labels[keep], sizes),
        strict=True,
    )
    return [ImageDetections(*part) for part in parts]


def _above(scores: Tensor, threshold: float) -> Tensor:
    """(H,) int64 positions in the flat scores that are strictly above the threshold."""
    if scores.device.type == "cpu":
        # NumPy finds few hits among many 2 to 6 times as fast as torch does on one thread.
        return torch.from_numpy(np.flatnonzero(scores.detach().float().numpy() > threshold))
    return (scores > threshold).flatten().nonzero().squeeze(1)
