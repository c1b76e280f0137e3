"""Figures about the boxes of a split: classes, sizes, and how well a detector's priors fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset

#: COCO's bounds of small, medium and large, in square pixels of the original image.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, np.inf),
}
#: Boxes that are compared with the priors; of more, this many are taken at equal distances.
MAX_COMPARED = 2000
#: Overlap at which a prior can learn a box: the threshold of SSD, RetinaNet and M2Det.
PRIOR_IOU = 0.5
#: ``sx, sy, tx, ty`` of an image of some height and width: input x = sx * x + tx.
View: TypeAlias = Callable[[int, int], tuple[float, float, float, float]]
_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_CHUNK_ENTRIES = 1 << 24


def describe(data: Dataset) -> dict[str, Any]:
    """Counts and percentiles as plain values; crowds are counted, but left out of the rest."""
    per_image = np.diff(data.offsets)
    image = np.arange(len(data)).repeat(per_image)
    real = ~data.crowd
    names = data.label_map.names
    boxes = np.bincount(data.labels[real], minlength=len(names))
    pairs = np.unique(np.stack([data.labels[real], image[real]]), axis=1)
    images = np.bincount(pairs[0], minlength=len(names))
    sides = data.boxes_xywh[real, 2:]
    return {
        "images": len(data),
        "boxes": len(data.labels),
        "crowd_boxes": int(data.crowd.sum()),
        "images_without_boxes": int((per_image == 0).sum()),
        "classes": {
            name: {"boxes": int(count), "images": int(seen)}
            for name, count, seen in zip(names, boxes, images, strict=True)
        },
        "sizes": {name: int(rows.sum()) for name, rows in by_size(data).items()},
        "box_width": _percentiles(sides[:, 0]),
        "box_height": _percentiles(sides[:, 1]),
        "box_aspect": _percentiles(sides[:, 0] / sides[:, 1]),
        "boxes_per_image": _percentiles(per_image),
        "digest": data.digest,
        "content_digest": data.content_digest,
    }


def by_size(data: Dataset) -> dict[str, NDArray[np.bool_]]:
    """(m,) bool for each of COCO's sizes: boxes that count as such, crowds left out."""
    return {
        name: (data.areas >= low) & (data.areas < high) & ~data.crowd
        for name, (low, high) in SIZES.items()
    }


def _percentiles(values: NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.percentile(values.astype(np.float64), _PERCENTILES)
    return {f"p{q}": round(float(v), 4) for q, v in zip(_PERCENTILES, found, strict=True)}


def prior_recall(
    data: Dataset, priors: NDArray[np.float32], view: View
) -> dict[str, dict[str, float]]:
    """How many boxes have a prior that overlaps them enough to learn from, by size.

    Args:
        data: whose boxes are looked at.
        priors: (A, 4) xyxy pixels of the input.
        view: where the pixels of an image come to lie in the input.

    Returns:
        For each size that occurs, and ``all``: ``boxes`` compared, ``recall`` at an IoU of 0.5,
        and ``mean_iou`` with the best prior.
    """
    boxes, rows = boxes_in_view(data, view)
    if not len(rows):
        return {}
    best = best_overlaps(boxes, priors)
    groups = {"all": np.ones(len(rows), bool)}
    groups.update({name: marked[rows] for name, marked in by_size(data).items()})
    return {
        name: {
            "boxes": int(marked.sum()),
            "recall": round(float((best[marked] >= PRIOR_IOU).mean()), 4),
            "mean_iou": round(float(best[marked].mean()), 4),
        }
        for name, marked in groups.items()
        if marked.any()
    }


def boxes_in_view(data: Dataset, view: View) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(k, 4) xyxy boxes in pixels of the input, at most 2,000 of them, and (k,) their rows.

    Args:
        data: whose boxes are looked at, crowds left out.
        view: where the pixels of an image come to lie in the input.
    """
    rows = np.flatnonzero(~data.crowd)
    if not len(rows):
        return np.zeros((0, 4), np.float32), rows
    if len(rows) > MAX_COMPARED:
        rows = rows[np.linspace(0, len(rows) - 1, MAX_COMPARED).astype(np.int64)]
    image = np.arange(len(data)).repeat(np.diff(data.offsets))[rows]
    sizes = np.stack([data.heights[image], data.widths[image]], axis=1)
    kinds, kind = np.unique(sizes, axis=0, return_inverse=True)
    maps = np.array([view(height, width) for height, width in kinds.tolist()])
    maps = maps[kind.reshape(-1)]  # (k, 4): sx, sy, tx, ty
    low = data.boxes_xywh[rows, :2] * maps[:, :2] + maps[:, 2:]
    high = low + data.boxes_xywh[rows, 2:] * maps[:, :2]
    return np.concatenate([low, high], axis=1).astype(np.float32), rows


def best_overlaps(boxes: NDArray[np.float32], priors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(k,) highest IoU of each of (k, 4) boxes with any of (A, 4) priors, all xyxy."""
    best = np.zeros(len(boxes), dtype=np.float32)
    prior_areas = np.prod(priors[:, 2:] - priors[:, :2], axis=1)
    step = max(1, _CHUNK_ENTRIES // max(1, len(priors)))
    for start in range(0, len(boxes), step):
        some = boxes[start : start + step, None]  # (c, 1, 4)
        width = np.minimum(some[..., 2], priors[:, 2]) - np.maximum(some[..., 0], priors[:, 0])
        height = np.minimum(some[..., 3], priors[:, 3]) - np.maximum(some[..., 1], priors[:, 1])
        inter = np.maximum(width, 0) * np.maximum(height, 0)
        areas = np.prod(some[..., 2:] - some[..., :2], axis=-1)
        best[start : start + step] = (inter / (areas + prior_areas - inter)).max(axis=1)
    return best
