"""The definition of every kernel, in NumPy; the compiled ones must give the same bits.

All arithmetic is float32, one rounding per written operation, in the written order, never fused;
that of COCO's rules is float64, as in pycocotools. In suppression only the Gaussian weight is
computed in float64 and rounded once, as in the published Cython code; :func:`exp_nonpositive`
spells out its operations because the last bit of a library's ``exp`` depends on the library.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from native.records import AccumulateParams, Annotations, Detections, MatchedDetections, MatchParams
from native.rules import (
    FIRST,
    GAUSSIAN,
    HARD,
    INVERTED,
    LARGEST_COORDINATE,
    NOT_FINITE,
    TOO_LARGE,
    Rule,
)
from native.types import Bool, Float32, Float64, Int64, UInt64


def first_bad_box(boxes: Float32) -> tuple[int, int]:
    """Row and fault of the first unusable box of (M, 4), or (-1, 0).

    Of several faults of one row the lowest code counts: 1 not finite, 2 a coordinate beyond
    ``LARGEST_COORDINATE``, 3 inverted.
    """
    fault = np.zeros(len(boxes), dtype=np.int64)
    fault[(boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])] = INVERTED
    fault[(np.abs(boxes) > np.float32(LARGEST_COORDINATE)).any(axis=1)] = TOO_LARGE
    fault[~np.isfinite(boxes).all(axis=1)] = NOT_FINITE
    bad = np.flatnonzero(fault)
    return (int(bad[0]), int(fault[bad[0]])) if len(bad) else (-1, 0)


def first_bad_score(scores: Float32) -> int:
    """Row of the first score of (M,) that is not finite, or -1."""
    bad = np.flatnonzero(~np.isfinite(scores))
    return int(bad[0]) if len(bad) else -1


def suppress(
    boxes: Float32, scores: Float32, labels: Int64, offsets: Int64, rule: Rule, threads: int
) -> tuple[Int64, Float32, Int64]:
    """Suppress overlapping boxes of each class of each image.

    Of the boxes left of a class the one of highest score, the first on ties, is kept and decays
    the scores of the others; boxes whose score falls below the threshold leave.

    Args:
        boxes: (M, 4) xyxy, all images one after the other.
        scores: (M,).
        labels: (M,).
        offsets: (N + 1,); image n holds rows ``offsets[n]`` to ``offsets[n + 1]``.
        rule: what to do.
        threads: ignored here.

    Returns:
        Rows kept, by image, then by falling decayed score, then by row; their decayed scores; and
        the (N + 1,) offsets of the images in both.
    """
    del threads
    rows: list[Int64] = []
    decayed: list[Float32] = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        row, score = _suppress_image(
            boxes[start:stop], scores[start:stop], labels[start:stop], rule
        )
        rows.append(row + start)
        decayed.append(score)
    counts = [len(row) for row in rows]
    return (
        np.concatenate([np.empty(0, np.int64), *rows]),
        np.concatenate([np.empty(0, np.float32), *decayed]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
    )


def _suppress_image(
    boxes: Float32, scores: Float32, labels: Int64, rule: Rule
) -> tuple[Int64, Float32]:
    candidates = np.flatnonzero(scores >= np.float32(rule.score_threshold))
    order = np.argsort(labels[candidates], kind="stable")
    groups = [
        _best(group, scores, rule.top_k_per_class)
        for group in np.split(
            candidates[order], np.flatnonzero(np.diff(labels[candidates[order]])) + 1
        )
    ]
    limit = min(rule.max_per_class, rule.max_total)
    found = [_suppress_class(boxes[group], scores[group], rule, limit) for group in groups]
    row = np.concatenate([group[kept] for group, (kept, _) in zip(groups, found, strict=True)])
    score = np.concatenate([decayed for _, decayed in found])
    best = np.lexsort((row, -score))[: rule.max_total]
    return row[best], score[best]


def _best(rows: Int64, scores: Float32, count: int) -> Int64:
    """The rows of the ``count`` highest scores, the first on ties, in input order."""
    return np.sort(rows[np.argsort(-scores[rows], kind="stable")[:count]])


class _Left(NamedTuple):
    """Boxes of one class still in the running: columns of equal length, in input order."""

    row: Int64
    x1: Float32
    y1: Float32
    x2: Float32
    y2: Float32
    area: Float32
    score: Float32

    def where(self, mask: Bool) -> _Left:
        return _Left(
            self.row[mask],
            self.x1[mask],
            self.y1[mask],
            self.x2[mask],
            self.y2[mask],
            self.area[mask],
            self.score[mask],
        )


def _suppress_class(
    boxes: Float32, scores: Float32, rule: Rule, limit: int
) -> tuple[Int64, Float32]:
    one = np.float32(rule.plus_one)
    x1, y1, x2, y2 = boxes.T
    area = (x2 - x1 + one) * (y2 - y1 + one)
    left = _Left(np.arange(len(boxes)), x1, y1, x2, y2, area, scores)
    rows: list[int] = []
    decayed: list[np.float32] = []
    while len(left.row) and len(rows) < limit:
        # argmax takes the first of equal scores, and the columns stay in input order.
        best = int(np.argmax(left.score))
        rows.append(int(left.row[best]))
        decayed.append(left.score[best])
        overlap = _overlap_with(left, best, one)
        score, stays = decay(left.score, overlap, rule)
        stays[best] = False
        left = left._replace(score=score).where(stays)
    return np.array(rows, dtype=np.int64), np.array(decayed, dtype=np.float32)


def _overlap_with(left: _Left, best: int, one: np.float32) -> Float32:
    """IoU of one box with all; 0 where the intersection has no area."""
    zero = np.float32(0)
    width = np.minimum(left.x2, left.x2[best]) - np.maximum(left.x1, left.x1[best]) + one
    height = np.minimum(left.y2, left.y2[best]) - np.maximum(left.y1, left.y1[best]) + one
    shared = np.maximum(width, zero) * np.maximum(height, zero)
    union = left.area + left.area[best] - shared
    overlap: Float32 = np.zeros_like(shared)
    np.divide(shared, union, out=overlap, where=shared > zero)
    return overlap


def decay(scores: Float32, overlap: Float32, rule: Rule) -> tuple[Float32, Bool]:
    """Scores after a kept box overlapped theirs, and which boxes stay in the running."""
    threshold = np.float32(rule.iou_threshold)
    if rule.method == HARD:
        return scores, overlap <= threshold
    if rule.method == GAUSSIAN:
        with np.errstate(over="ignore"):
            exponent = -(overlap * overlap) / np.float32(rule.sigma)
        weight = exp_nonpositive(exponent.astype(np.float64)).astype(np.float32)
    else:
        weight = np.where(overlap > threshold, np.float32(1) - overlap, np.float32(1))
    scores = weight * scores
    return scores, scores >= np.float32(rule.score_threshold)


#: Adding and subtracting it rounds a float64 of moderate size to the nearest integer, ties to even.
_ROUND = 1.5 * 2.0**52
#: ln 2 in two parts; the first has 32 trailing zero bits, so its product with an integer is exact.
_LN2_HIGH = float.fromhex("0x1.62e42feep-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_DEGREE = 12


def exp_nonpositive(x: Float64) -> Float64:
    """exp(x) for x <= 0 in operations that IEEE 754 fixes, accurate to about 2e-16 relative.

    ``x = k ln 2 + r`` with integer k and |r| <= ln(2)/2, then the Taylor sum of exp(r) by Horner's
    rule (remainder r**13/13! < 2e-16), scaled by 2**k. Below -110 the value at -110 is given: both
    round to 0 in float32.
    """
    x = np.maximum(x, -110.0)
    k = (x * _LOG2_E + _ROUND) - _ROUND
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    total = np.full_like(r, 1.0 / math.factorial(_DEGREE))
    for n in range(_DEGREE - 1, -1, -1):
        total = total * r + 1.0 / math.factorial(n)
    return np.ldexp(total, k.astype(np.int32))


def match_priors(
    boxes: Float32, valid: Bool, priors: Float32, threshold: float, claims: int, threads: int
) -> tuple[Int64, Bool]:
    """Slot of the box of each prior, and whether it is positive; :func:`native.match_priors`."""
    del threads
    found = [
        _match_image(slots, used, priors, np.float32(threshold), claims)
        for slots, used in zip(boxes, valid, strict=True)
    ]
    shape = (len(boxes), len(priors))
    return (
        np.array([box for box, _ in found], dtype=np.int64).reshape(shape),
        np.array([positive for _, positive in found], dtype=np.bool_).reshape(shape),
    )


def _match_image(
    boxes: Float32, valid: Bool, priors: Float32, threshold: np.float32, claims: int
) -> tuple[Int64, Bool]:
    best = np.full(len(priors), -1, dtype=np.float32)
    slot_of = np.zeros(len(priors), dtype=np.int64)
    claimed: list[tuple[int, int]] = []
    for slot in np.flatnonzero(valid).tolist() if len(priors) else []:
        overlap = _overlap_with_priors(boxes[slot], priors)
        higher = overlap > best
        best[higher] = overlap[higher]
        slot_of[higher] = slot
        claimed.append((slot, int(np.argmax(overlap))))
    positive = best > threshold if claims == FIRST else best >= threshold
    for slot, prior in reversed(claimed) if claims == FIRST else claimed:
        slot_of[prior] = slot
        positive[prior] = True
    return slot_of, positive


def _overlap_with_priors(box: Float32, priors: Float32) -> Float32:
    """IoU of one box with (A, 4) priors, as :func:`detectors.boxes.pairwise_iou` computes it."""
    zero = np.float32(0)
    x1, y1, x2, y2 = priors.T
    width = np.maximum(np.minimum(x2, box[2]) - np.maximum(x1, box[0]), zero)
    height = np.maximum(np.minimum(y2, box[3]) - np.maximum(y1, box[1]), zero)
    shared = width * height
    union = (box[2] - box[0]) * (box[3] - box[1]) + (x2 - x1) * (y2 - y1) - shared
    overlap: Float32 = shared / np.maximum(union, np.finfo(np.float32).tiny)
    return overlap


def match_detections(
    detections: Detections, annotations: Annotations, params: MatchParams, threads: int
) -> tuple[UInt64, UInt64, Int64, Int64]:
    """True and false positives, ranks and boxes; see :class:`native.DetectionMatches`."""
    del threads
    count = len(detections.images)
    true_positives, false_positives = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    ranks, boxes = np.zeros(count, np.int64), np.full(count, -1, np.int64)
    order = np.lexsort((-detections.scores, detections.labels, detections.images))
    group = np.stack([detections.images[order], detections.labels[order]])
    starts = np.flatnonzero((np.diff(group, prepend=-1) != 0).any(axis=0))
    for rows in np.split(order, starts)[1:]:
        ranks[rows] = np.arange(len(rows))
        rows = rows[: params.limit]
        first, last = annotations.offsets[detections.images[rows[0]] :][:2].tolist()
        targets = first + np.flatnonzero(
            annotations.labels[first:last] == detections.labels[rows[0]]
        )
        overlaps = _overlaps(
            detections.boxes[rows], annotations.boxes[targets], annotations.crowd[targets]
        )
        bit = np.uint64(1)
        for low, high in params.ranges.tolist():
            ignored = annotations.crowd[targets] | _outside(
                annotations.measures[targets], low, high
            )
            outside = _outside(detections.measures[rows], low, high)
            for threshold in params.thresholds.tolist():
                taken = _match(overlaps, ignored, annotations.crowd[targets], threshold)
                counts = np.append(~ignored, False)[taken]
                true_positives[rows[counts]] |= bit
                false_positives[rows[(taken < 0) & ~outside]] |= bit
                if bit == 1:
                    boxes[rows] = np.append(targets, -1)[taken]
                bit <<= np.uint64(1)
    return true_positives, false_positives, ranks, boxes


def _outside(measures: Float64, low: float, high: float) -> Bool:
    return (measures < low) | (measures > high)


def _overlaps(detections: Float64, boxes: Float64, crowd: Bool) -> Float64:
    """(d, m) IoU of xywh boxes as ``bbIou`` of pycocotools has it; 0 where areas overflow."""
    x, y, w, h = (side[:, None] for side in detections.T)
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


def accumulate(
    matched: MatchedDetections, params: AccumulateParams, threads: int
) -> tuple[Float64, Float64, Float64]:
    """Precision, scores and recall; see :class:`native.Curves`."""
    del threads
    classes, ranges = params.boxes.shape
    points, limits = len(params.recalls), len(params.limits)
    precision = np.full((params.levels, points, classes, ranges), -1.0)
    scores = np.full((params.levels, points, classes), -1.0)
    recall = np.full((params.levels, classes, ranges, limits), -1.0)
    order = np.lexsort((matched.images, -matched.scores))
    for label, span in np.argwhere(params.boxes).tolist():
        rows = order[matched.labels[order] == label]
        boxes = int(params.boxes[label, span])
        for level in range(params.levels):
            bit = np.uint64(span * params.levels + level)
            true = (matched.true_positives[rows] >> bit & np.uint64(1)).astype(np.bool_)
            false = (matched.false_positives[rows] >> bit & np.uint64(1)).astype(np.bool_)
            tp, fp = np.cumsum(true, dtype=float), np.cumsum(false, dtype=float)
            reached = tp / (fp + tp + np.spacing(1))
            best = np.append(np.maximum.accumulate(reached[::-1])[::-1], 0.0)
            at = np.searchsorted(tp / boxes, params.recalls, side="left")
            precision[level, :, label, span] = best[at]
            if span == 0:
                scores[level, :, label] = np.append(matched.scores[rows], 0.0)[at]
            within = matched.ranks[rows[true]][:, None] < params.limits
            recall[level, label, span] = within.sum(axis=0) / boxes
    return precision, scores, recall
