"""The definition of grading, in NumPy; part of :mod:`native.reference`.

All arithmetic is float64, one rounding per written operation, in the written order, never fused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from native.rules import Bool, Float64, Int64, UInt64

if TYPE_CHECKING:
    from native.records import Exam, Found, Graded, Scale, Truth


def grade(
    found: Found, truth: Truth, exam: Exam, threads: int
) -> tuple[UInt64, UInt64, Int64, Int64]:
    """Hits, alarms, places and boxes of every detection; see :func:`native.grade`."""
    del threads
    count = len(found.images)
    hits, alarms = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    places, boxes = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    order = np.lexsort((-found.scores, found.labels, found.images))
    group = np.stack([found.images[order], found.labels[order]])
    starts = np.flatnonzero((np.diff(group, prepend=-1) != 0).any(axis=0))
    for rows in np.split(order, starts)[1:]:
        places[rows] = np.arange(len(rows))
        rows = rows[: exam.limit]
        first, last = truth.offsets[found.images[rows[0]] :][:2].tolist()
        targets = first + np.flatnonzero(truth.labels[first:last] == found.labels[rows[0]])
        overlaps = _overlaps(found.boxes[rows], truth.boxes[targets], truth.crowd[targets])
        bit = np.uint64(1)
        for low, high in exam.ranges.tolist():
            ignored = truth.crowd[targets] | _outside(truth.measures[targets], low, high)
            outside = _outside(found.measures[rows], low, high)
            for threshold in exam.thresholds.tolist():
                taken = _match(overlaps, ignored, truth.crowd[targets], threshold)
                counts = np.append(~ignored, False)[taken]
                hits[rows[counts]] |= bit
                alarms[rows[(taken < 0) & ~outside]] |= bit
                if bit == 1:
                    boxes[rows] = np.append(targets, -1)[taken]
                bit <<= np.uint64(1)
    return hits, alarms, places, boxes


def _outside(measures: Float64, low: float, high: float) -> Bool:
    return (measures < low) | (measures > high)


def _overlaps(found: Float64, boxes: Float64, crowd: Bool) -> Float64:
    """(d, m) IoU of xywh boxes as ``bbIou`` of pycocotools has it; 0 where areas overflow."""
    x, y, w, h = (side[:, None] for side in found.T)
    bx, by, bw, bh = boxes.T
    with np.errstate(all="ignore"):
        width = np.minimum(w + x, bw + bx) - np.maximum(x, bx)
        height = np.minimum(h + y, bh + by) - np.maximum(y, by)
        shared, own = width * height, w * h
        union = np.where(crowd, own, own + bw * bh - shared)
        part = shared / union
        return np.where((width <= 0) | (height <= 0) | np.isnan(part), 0.0, part)


def _match(overlaps: Float64, ignored: Bool, crowd: Bool, threshold: float) -> Int64:
    """(d,) the column each row takes, rows in turn; -1 for none."""
    taken = np.full(len(overlaps), -1, np.int64)
    free = np.ones(len(crowd), np.bool_)
    for row, shared in enumerate(overlaps):
        for group in (~ignored, ignored):
            best = min(threshold, 1 - 1e-10)
            for column in np.flatnonzero(group & (free | crowd)).tolist():
                if not shared[column] < best:
                    best, taken[row] = shared[column], column
            if taken[row] >= 0:
                free[taken[row]] = False
                break
    return taken


def tally(graded: Graded, scale: Scale, threads: int) -> tuple[Float64, Float64, Float64]:
    """Precision, scores and recall; see :class:`native.grading.Curves`."""
    del threads
    classes, ranges = scale.boxes.shape
    points, limits = len(scale.recalls), len(scale.limits)
    precision = np.full((scale.levels, points, classes, ranges), -1.0)
    scores = np.full((scale.levels, points, classes), -1.0)
    recall = np.full((scale.levels, classes, ranges, limits), -1.0)
    order = np.lexsort((graded.images, -graded.scores))
    for label, span in np.argwhere(scale.boxes).tolist():
        rows = order[graded.labels[order] == label]
        boxes = int(scale.boxes[label, span])
        for level in range(scale.levels):
            bit = np.uint64(span * scale.levels + level)
            hit = (graded.hits[rows] >> bit & np.uint64(1)).astype(np.bool_)
            alarm = (graded.alarms[rows] >> bit & np.uint64(1)).astype(np.bool_)
            right, wrong = np.cumsum(hit, dtype=float), np.cumsum(alarm, dtype=float)
            reached = right / (wrong + right + np.spacing(1))
            best = np.append(np.maximum.accumulate(reached[::-1])[::-1], 0.0)
            at = np.searchsorted(right / boxes, scale.recalls, side="left")
            precision[level, :, label, span] = best[at]
            if span == 0:
                scores[level, :, label] = np.append(graded.scores[rows], 0.0)[at]
            within = graded.places[rows[hit]][:, None] < scale.limits
            recall[level, label, span] = within.sum(axis=0) / boxes
    return precision, scores, recall
