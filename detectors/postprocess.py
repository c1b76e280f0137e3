"""From candidates to detections: threshold, non-maximum suppression and caps.

Every detector goes through :func:`postprocess`; what differs between published recipes is only the
:class:`~detectors.config.PostprocessConfig`. Boxes are expected in pixels of the original image
already, because the recipes suppress there: with the ``plus_one`` convention the scale changes the
result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import native
from detectors.config import PostprocessConfig
from detectors.structures import Candidates, ImageDetections

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
