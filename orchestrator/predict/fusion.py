"""Weighted boxes fusion: one box from the detections that several views have of an object.

Solovyev, Wang, Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object detection
models", Image and Vision Computing 107, 2021, https://arxiv.org/abs/1910.13302.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from detectors.structures import ImageDetections


def fuse(views: Sequence[ImageDetections], *, iou: float = 0.55) -> ImageDetections:
    """Merge the detections of several views of one image, class by class.

    Boxes are taken by falling score and join the fused box they overlap most, if by more than
    ``iou``; a fused box is the mean of its members, weighted by their scores. Its score is their
    mean, times the part of the views that saw it (equation 6 of the paper: min(members, views) /
    views).

    Args:
        views: detections of each view in pixels of the image.
        iou: overlap from which boxes are the same object.

    Returns:
        Fused detections, best first.
    """
    boxes = torch.cat([view.boxes for view in views]).numpy().astype(np.float64)
    scores = torch.cat([view.scores for view in views]).numpy().astype(np.float64)
    labels = torch.cat([view.labels for view in views]).numpy()
    fused: list[tuple[float, int, NDArray[np.float64]]] = []
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        fused += [
            (score, label, box)
            for box, score in _clusters(boxes[rows], scores[rows], iou, len(views))
        ]
    fused.sort(key=lambda one: -one[0])
    return ImageDetections(
        boxes=torch.tensor(
            np.array([box for _, _, box in fused]).reshape(-1, 4), dtype=torch.float32
        ),
        scores=torch.tensor([score for score, _, _ in fused], dtype=torch.float32),
        labels=torch.tensor([label for _, label, _ in fused], dtype=torch.int64),
    )


def _clusters(
    boxes: NDArray[np.float64], scores: NDArray[np.float64], iou: float, views: int
) -> list[tuple[NDArray[np.float64], float]]:
    """Fused boxes and scores of one class; ``boxes`` are best first."""
    sums = np.zeros((len(boxes), 4))
    totals = np.zeros(len(boxes))
    members = np.zeros(len(boxes), np.int64)
    means = np.zeros((len(boxes), 4))
    count = 0
    for box, score in zip(boxes, scores, strict=True):
        overlaps = _iou(box, means[:count])
        place = int(overlaps.argmax()) if count and overlaps.max() > iou else count
        count = max(count, place + 1)
        sums[place] += box * score
        totals[place] += score
        members[place] += 1
        means[place] = sums[place] / totals[place]
    score_of = totals[:count] / members[:count] * np.minimum(members[:count], views) / views
    return list(zip(means[:count], score_of.tolist(), strict=True))


def _iou(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) overlap of one xyxy box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - overlap
    iou = np.zeros(len(others))
    np.divide(overlap, union, out=iou, where=union > 0)
    return iou
