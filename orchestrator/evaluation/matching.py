"""Which detection matches which annotation at one IoU threshold, and what it overlaps otherwise.

The matching is COCO's (``COCOeval.evaluateImg``): best score first, each takes the free box of its
class it overlaps most, a crowd region swallows any number. What evaluation reports besides numbers
(errors, confusion, calibration, worst images) is derived from these columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import native
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.evaluation.results import Results

#: Detections of a class in an image that count, as in COCO's numbers.
LIMIT = 100
#: Bounds the memory that overlaps take.
_PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Matches:
    """d detections against m boxes at one IoU threshold.

    Detections are in the order COCO ranks them over all images: by falling score, ties by image id
    and place. Those beyond the hundredth of a class in an image are left out.

    Attributes:
        threshold: IoU from which a detection matches an annotation.
        row: (d,) row in the results.
        image: (d,) position of the image in the data set.
        label, score: (d,).
        annotation: (d,) row of the box it matched, crowds included; -1 for a false positive.
        ignored: (d,) whether it matched a crowd region, and counts as neither.
        own_iou, own_box: (d,) largest overlap with a box of its class, crowds apart, and its row.
        other_iou, other_box: (d,) the same for boxes of other classes.
        truth_image: (m,) image position of every box.
        matched: (m,) whether a detection matched the box; one that none matched was missed.
    """

    threshold: float
    row: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    annotation: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    own_iou: NDArray[np.float64]
    own_box: NDArray[np.int64]
    other_iou: NDArray[np.float64]
    other_box: NDArray[np.int64]
    truth_image: NDArray[np.int64]
    matched: NDArray[np.bool_]

    @property
    def true_positive(self) -> NDArray[np.bool_]:
        """(d,) whether it matched a box that counts."""
        return (self.annotation >= 0) & ~self.ignored

    @property
    def false_positive(self) -> NDArray[np.bool_]:
        """(d,) whether it matched no box at all."""
        return self.annotation < 0


def match_at(
    dataset: Dataset, results: Results, thresholds: Sequence[float], *, limit: int = LIMIT
) -> tuple[NDArray[np.int64], native.DetectionMatches]:
    """Match sound results, boxes of all sizes at once.

    Args:
        dataset, results: annotations, and detections in the same images.
        thresholds: IoUs from which they match.
        limit: detections of a class in an image that count, the best.

    Returns:
        Rows of the results in the order COCO ranks them over all images, those beyond the limit
        left out; and the matches of every row of the results.
    """
    ranks = np.argsort(np.argsort(dataset.image_ids))
    images, _ = positions_in(results.image_ids, dataset.image_ids)
    matches = native.match_detections(
        native.Detections(
            images=images,
            labels=results.labels,
            boxes=results.boxes_xywh,
            measures=np.zeros(len(results)),
            scores=results.scores,
        ),
        native.Annotations(
            offsets=dataset.offsets,
            labels=dataset.labels,
            boxes=dataset.boxes_xywh,
            measures=np.zeros(len(dataset.labels)),
            crowd=dataset.crowd,
        ),
        native.MatchParams(np.array(thresholds), np.zeros((1, 2)), limit),
    )
    order = np.lexsort((ranks[images], -results.scores))
    return order[matches.ranks[order] < limit], matches


def match(dataset: Dataset, results: Results, *, threshold: float = 0.5) -> Matches:
    """Match sound results at one IoU threshold."""
    rows, matches = match_at(dataset, results, [threshold])
    annotation = matches.boxes[rows]
    image, _ = positions_in(results.image_ids[rows], dataset.image_ids)
    label, boxes = results.labels[rows], results.boxes_xywh[rows]
    own_iou, other_iou = np.zeros(len(rows)), np.zeros(len(rows))
    own_box, other_box = np.full(len(rows), -1, np.int64), np.full(len(rows), -1, np.int64)
    for pairs in _overlapping(dataset, image, boxes):
        own = label[pairs.row] == dataset.labels[pairs.box]
        _highest(pairs, own, own_iou, own_box)
        _highest(pairs, ~own, other_iou, other_box)
    matched = np.zeros(len(dataset.labels), np.bool_)
    matched[annotation[annotation >= 0]] = True
    return Matches(
        threshold=threshold,
        row=rows,
        image=image,
        label=label,
        score=results.scores[rows],
        annotation=annotation,
        # Row -1, which false positives point at, is no crowd.
        ignored=np.append(dataset.crowd, False)[annotation],
        own_iou=own_iou,
        own_box=own_box,
        other_iou=other_iou,
        other_box=other_box,
        truth_image=np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)),
        matched=matched,
    )


class _Pairs(NamedTuple):
    """Detections and boxes of one image that overlap, by detection and then by box."""

    row: NDArray[np.int64]
    box: NDArray[np.int64]
    iou: NDArray[np.float64]


def _overlapping(
    dataset: Dataset, image: NDArray[np.int64], boxes: NDArray[np.float64]
) -> Iterator[_Pairs]:
    """All pairs whose IoU is above 0, crowds apart, for some detections at a time."""
    counts = np.diff(dataset.offsets)[image]
    shares = 1 + int(counts.sum()) // _PAIRS_AT_ONCE
    for rows in np.array_split(np.arange(len(image)), shares):
        row = np.repeat(rows, counts[rows])
        first = dataset.offsets[image[rows]] - (np.cumsum(counts[rows]) - counts[rows])
        box = np.arange(len(row)) + np.repeat(first, counts[rows])
        x, y, w, h = boxes[row].T
        bx, by, bw, bh = dataset.boxes_xywh[box].T
        width = np.minimum(x + w, bx + bw) - np.maximum(x, bx)
        height = np.minimum(y + h, by + bh) - np.maximum(y, by)
        meet = np.flatnonzero((width > 0) & (height > 0) & ~dataset.crowd[box])
        shared = (width * height)[meet]
        yield _Pairs(row[meet], box[meet], shared / ((w * h)[meet] + (bw * bh)[meet] - shared))


def _highest(
    pairs: _Pairs, mask: NDArray[np.bool_], iou: NDArray[np.float64], box: NDArray[np.int64]
) -> None:
    """Write the highest overlap of each detection, and the first box that has it."""
    row, shared = pairs.row[mask], pairs.iou[mask]
    np.maximum.at(iou, row, shared)
    best = (shared > 0) & (shared == iou[row])
    # Of several values for one place NumPy keeps the last.
    box[row[best][::-1]] = pairs.box[mask][best][::-1]


class ImageMatch(NamedTuple):
    """Detections against the annotations of one image.

    Attributes:
        true_positive, ignored: (d,) whether a detection matches a box that counts, or a crowd.
        matched: (m,) whether a detection matches the box.
    """

    true_positive: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    matched: NDArray[np.bool_]


def match_image(
    detections: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]],
    annotations: tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]],
    *,
    threshold: float = 0.5,
) -> ImageMatch:
    """Match the detections of one image as COCO does, boxes of all sizes at once.

    Args:
        detections: (d, 4) xywh boxes, (d,) labels and (d,) scores.
        annotations: (m, 4) xywh boxes, (m,) labels and (m,) whether each is a crowd.
        threshold: IoU from which they match.
    """
    boxes, labels, scores = detections
    there, classes, crowd = annotations
    # The kernel gives back rows of annotations that are sorted by image, which one image is.
    matches = native.match_detections(
        native.Detections(
            images=np.zeros(len(scores), np.int64),
            labels=labels,
            boxes=boxes.reshape(-1, 4),
            measures=np.zeros(len(scores)),
            scores=scores,
        ),
        native.Annotations(
            offsets=np.array([0, len(classes)], np.int64),
            labels=classes,
            boxes=there.reshape(-1, 4),
            measures=np.zeros(len(classes)),
            crowd=crowd,
        ),
        native.MatchParams(np.array([threshold]), np.zeros((1, 2)), max(1, len(scores))),
    )
    matched = np.zeros(len(classes), np.bool_)
    matched[matches.boxes[matches.boxes >= 0]] = True
    true_positive = matches.true_positives.astype(np.bool_)
    return ImageMatch(true_positive, (matches.boxes >= 0) & ~true_positive, matched)
