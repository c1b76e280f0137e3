"""COCO's matching of detections with annotated boxes, and the precision and recall that follow.

What ``COCOeval.evaluateImg`` and ``COCOeval.accumulate`` of pycocotools 2.0 compute, to the bit, in
two steps: matches depend on one image alone and can be had when it arrives, and only the second
step needs all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from native.dispatch import checked_threads, kernels
from native.records import AccumulateParams, Annotations, Detections, MatchedDetections, MatchParams
from native.types import Float64, Int64, UInt64


class DetectionMatches(NamedTuple):
    """What d detections matched, in the order they were given.

    Bit ``range * T + threshold`` of a word answers for one range and one threshold. A detection
    that is neither a true nor a false positive is ignored there: it matched a box that does not
    count, or matched none and lies outside the range, or comes after the limit.

    Attributes:
        true_positives: (d,) uint64; it matched a box that counts.
        false_positives: (d,) uint64; it matched none.
        ranks: (d,) int64 how many of its class and image come before it.
        boxes: (d,) int64 row of the box it matched at the first threshold in the first range,
            whether that counts or not; -1 for none.
    """

    true_positives: UInt64
    false_positives: UInt64
    ranks: Int64
    boxes: Int64


class Curves(NamedTuple):
    """Precision and recall; -1 for a class without boxes that count.

    Attributes:
        precision: (T, R, K, B) highest precision at each recall or beyond; 0 where not reached.
        scores: (T, R, K) score of the detection that reaches it, in the first range.
        recall: (T, K, B, L) highest recall by limit.
    """

    precision: Float64
    scores: Float64
    recall: Float64


def match_detections(
    detections: Detections,
    annotations: Annotations,
    params: MatchParams,
    *,
    threads: int | None = None,
) -> DetectionMatches:
    """Match the detections of some images with their boxes.

    Within an image and a class detections go by falling score, the first on ties. Each takes the
    free box it overlaps most, the last on ties, one that counts in the range before one that does
    not; crowds do not count and are always free, and the overlap with one is the part of the
    detection that lies in it. Boxes whose areas exceed the range of a double overlap nothing.

    Args:
        detections: all detections of each image that occurs; other images cost nothing.
        annotations: the annotated boxes.
        params: thresholds and ranges.
        threads: most threads to use; None takes the cores granted to this process.

    Raises:
        ValueError: a detection of an image that ``annotations`` does not have.
    """
    images = len(annotations.offsets) - 1
    if (
        len(detections.images)
        and not 0 <= detections.images.min() <= detections.images.max() < images
    ):
        raise ValueError(f"detections.images reach beyond the {images} images of annotations")
    return DetectionMatches(
        *kernels().match_detections(detections, annotations, params, checked_threads(threads))
    )


def accumulate(
    matched: MatchedDetections, params: AccumulateParams, *, threads: int | None = None
) -> Curves:
    """Rank the detections of each class over all images and read precision and recall.

    Detections go by falling score; equal scores by image, then by their order.

    Args:
        matched: all detections with their matches.
        params: what they are counted against.
        threads: most threads to use; None takes the cores granted to this process.

    Raises:
        ValueError: a detection of a class that ``params`` does not have.
    """
    classes = len(params.boxes)
    if len(matched.labels) and not 0 <= matched.labels.min() <= matched.labels.max() < classes:
        raise ValueError(f"matched.labels reach beyond the {classes} classes of params")
    return Curves(*kernels().accumulate(matched, params, checked_threads(threads)))
