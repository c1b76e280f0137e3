"""Soft-NMS (Bodla et al., ICCV 2017) and NMS for NumPy arrays, over classes and images at once.

Overlap is tested between boxes of one class of one image only. Results do not depend on threads,
and ties of score fall to the box that comes first. Boxes are xyxy; a box without area overlaps
nothing. The order of arithmetic is that of :mod:`native.reference`.
"""

from __future__ import annotations

import numpy as np

from native.dispatch import checked_threads, kernels, refuse_bad_boxes
from native.rules import Method, Rule, make_rule
from native.types import Float32, Int64, checked_array


def soft_nms_batch(
    boxes: Float32,
    scores: Float32,
    labels: Int64,
    offsets: Int64,
    *,
    method: Method = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    plus_one: bool = False,
    top_k_per_class: int | None = None,
    max_per_class: int | None = None,
    max_total: int | None = None,
    threads: int | None = None,
) -> tuple[Int64, Float32, Int64]:
    """Decay the scores of boxes that overlap a better box of their class, in several images.

    Args:
        boxes: (M, 4) float32 xyxy with x1 <= x2 and y1 <= y2, the images one after the other.
        scores: (M,) float32.
        labels: (M,) int64, any values.
        offsets: (N + 1,) int64 from 0 to M, not falling; image n is rows
            ``offsets[n]:offsets[n + 1]``.
        method: ``linear`` multiplies a score by ``1 - IoU`` above the threshold, ``gaussian`` by
            ``exp(-IoU**2 / sigma)``, ``hard`` removes above the threshold.
        iou_threshold: compared strictly, in float32; ``gaussian`` does not read it.
        sigma: only ``gaussian`` reads it.
        score_threshold: a score below it, decayed or given, removes the box.
        plus_one: x2 and y2 are the last pixel inside, so a width is ``x2 - x1 + 1``.
        top_k_per_class: only so many boxes of a class of an image take part, those of highest
            score, the first on ties.
        max_per_class: most boxes kept of a class of an image. Far cheaper than keeping all.
        max_total: most boxes kept of an image. Far cheaper than keeping all.
        threads: most threads to use; None takes the cores granted to this process.

    Returns:
        Rows of the input kept (int64), by image, then by falling decayed score, then by row; their
        decayed scores (float32); and the (N + 1,) offsets of the images in both.

    Raises:
        TypeError: an array has another dtype.
        ValueError: a shape, value or parameter is not as above.
    """
    rule = make_rule(
        method=method,
        iou_threshold=iou_threshold,
        sigma=sigma,
        score_threshold=score_threshold,
        plus_one=plus_one,
        top_k_per_class=top_k_per_class,
        max_per_class=max_per_class,
        max_total=max_total,
    )
    return _suppress(boxes, scores, labels, offsets, rule, threads)


def nms_batch(
    boxes: Float32,
    scores: Float32,
    labels: Int64,
    offsets: Int64,
    *,
    iou_threshold: float,
    plus_one: bool = False,
    top_k_per_class: int | None = None,
    max_per_class: int | None = None,
    max_total: int | None = None,
    threads: int | None = None,
) -> tuple[Int64, Int64]:
    """Drop boxes whose IoU with a better box of their class and image is above the threshold.

    Arguments and errors as in :func:`soft_nms_batch`; scores may be any finite numbers.

    Returns:
        Rows of the input kept (int64), by image, then by falling score, then by row; and the
        (N + 1,) offsets of the images in them.
    """
    rule = make_rule(
        method="hard",
        iou_threshold=iou_threshold,
        sigma=1.0,
        score_threshold=None,
        plus_one=plus_one,
        top_k_per_class=top_k_per_class,
        max_per_class=max_per_class,
        max_total=max_total,
    )
    keep, _, kept_offsets = _suppress(boxes, scores, labels, offsets, rule, threads)
    return keep, kept_offsets


def _suppress(
    boxes: Float32,
    scores: Float32,
    labels: Int64,
    offsets: Int64,
    rule: Rule,
    threads: int | None,
) -> tuple[Int64, Float32, Int64]:
    serving = kernels()
    boxes = checked_array("boxes", boxes, np.float32, ndim=2)
    if boxes.shape[1] != 4:
        raise ValueError(f"boxes has shape {boxes.shape}; it must be (M, 4), xyxy")
    rows = len(boxes)
    scores = checked_array("scores", scores, np.float32, ndim=1)
    labels = checked_array("labels", labels, np.int64, ndim=1)
    for name, count in (("scores", len(scores)), ("labels", len(labels))):
        if count != rows:
            raise ValueError(f"{name} has {count} entries for {rows} boxes; each box needs one")
    refuse_bad_boxes(serving, "boxes", boxes)
    row = serving.first_bad_score(scores)
    if row >= 0:
        raise ValueError(f"scores[{row}] = {scores[row]} is not finite")
    offsets = _checked_offsets(offsets, rows)
    return serving.suppress(boxes, scores, labels, offsets, rule, checked_threads(threads))


def _checked_offsets(offsets: Int64, rows: int) -> Int64:
    offsets = checked_array("offsets", offsets, np.int64, ndim=1)
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != rows:
        ends = offsets[[0, -1]].tolist() if len(offsets) else "nothing"
        raise ValueError(f"offsets must go from 0 to {rows}, the number of boxes; got {ends}")
    if (np.diff(offsets) < 0).any():
        at = int(np.flatnonzero(np.diff(offsets) < 0)[0])
        raise ValueError(
            f"offsets must not fall; offsets[{at}:{at + 2}] = {offsets[at : at + 2].tolist()}"
        )
    return offsets
