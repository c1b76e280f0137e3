"""COCO's verdict on detections, and precision over recall from verdicts of any number of images.

What ``COCOeval.evaluateImg`` and ``COCOeval.accumulate`` of pycocotools 2.0 compute, to the bit, in
two steps: verdicts depend on one image alone and can be had when it arrives, and only the second
step needs all of them.
"""

from __future__ import annotations

from typing import NamedTuple

from native.checks import checked_threads
from native.dispatch import kernels
from native.records import Exam, Found, Graded, Scale, Truth
from native.rules import Float64, Int64, UInt64


class Verdicts(NamedTuple):
    """On d detections, in the order they were given.

    Bit ``range * T + threshold`` of a word answers for one range and one threshold. A detection
    that is neither hit nor alarm is ignored there: it matched a box that does not count, or matched
    none and lies outside the range, or comes after the limit.

    Attributes:
        hits: (d,) uint64; it matched a box that counts.
        alarms: (d,) uint64; it matched none.
        places: (d,) int64 how many of its class and image come before it.
        boxes: (d,) int64 row of the box it matched at the first threshold in the first range,
            whether that counts or not; -1 for none.
    """

    hits: UInt64
    alarms: UInt64
    places: Int64
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


def grade(found: Found, truth: Truth, exam: Exam, *, threads: int | None = None) -> Verdicts:
    """Match the detections of some images with their boxes.

    Within an image and a class detections go by falling score, the first on ties. Each takes the
    free box it overlaps most, the last on ties, one that counts in the range before one that does
    not; crowds do not count and are always free, and the overlap with one is the part of the
    detection that lies in it. Boxes whose areas exceed the range of a double overlap nothing.

    Args:
        found: all detections of each image that occurs; other images cost nothing.
        truth: the annotated boxes.
        exam: thresholds and ranges.
        threads: most threads to use; None takes the cores granted to this process.

    Raises:
        ValueError: a detection of an image that ``truth`` does not have.
    """
    images = len(truth.offsets) - 1
    if len(found.images) and not 0 <= found.images.min() <= found.images.max() < images:
        raise ValueError(f"found.images reach beyond the {images} images of truth")
    return Verdicts(*kernels().grade(found, truth, exam, checked_threads(threads)))


def tally(graded: Graded, scale: Scale, *, threads: int | None = None) -> Curves:
    """Rank the detections of each class over all images and read precision and recall.

    Detections go by falling score; equal scores by image, then by their order.

    Args:
        graded: all detections with their verdicts.
        scale: what they are counted against.
        threads: most threads to use; None takes the cores granted to this process.

    Raises:
        ValueError: a detection of a class that ``scale`` does not have.
    """
    classes = len(scale.boxes)
    if len(graded.labels) and not 0 <= graded.labels.min() <= graded.labels.max() < classes:
        raise ValueError(f"graded.labels reach beyond the {classes} classes of scale")
    return Curves(*kernels().tally(graded, scale, checked_threads(threads)))
