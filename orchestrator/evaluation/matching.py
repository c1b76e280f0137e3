"""Which detection found which box at one IoU threshold, and what it overlaps otherwise.

The matching is COCO's (``COCOeval.evaluateImg``): best score first, each takes the free box of its
class it overlaps most, a crowd region swallows any number. What evaluation reports besides numbers
(errors, confusion, calibration, worst images) is derived from these columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.records import Dataset
from orchestrator.evaluation.results import Results

#: Detections of a class in an image that count, as in COCO's numbers.
_LIMIT = 100


@dataclass(frozen=True)
class Matches:
    """d detections against m boxes at one IoU threshold.

    Detections are in the order COCO ranks them over all images: by falling score, ties by image id
    and place. Those beyond the hundredth of a class in an image are left out.

    Attributes:
        threshold: IoU from which a detection finds a box.
        row: (d,) row in the results.
        image: (d,) position of the image in the data set.
        label, score: (d,).
        found: (d,) row of the box it matched, crowds included; -1 for a false alarm.
        ignored: (d,) it matched a crowd region.
        own_iou, own_box: (d,) largest overlap with a box of its class, crowds apart, and its row.
        other_iou, other_box: (d,) the same for boxes of other classes.
        truth_image: (m,) image position of every box.
        matched: (m,) whether a box was found.
    """

    threshold: float
    row: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    score: NDArray[np.float64]
    found: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    own_iou: NDArray[np.float64]
    own_box: NDArray[np.int64]
    other_iou: NDArray[np.float64]
    other_box: NDArray[np.int64]
    truth_image: NDArray[np.int64]
    matched: NDArray[np.bool_]

    @property
    def hit(self) -> NDArray[np.bool_]:
        """(d,) whether it found a box that counts."""
        return (self.found >= 0) & ~self.ignored


def match(dataset: Dataset, results: Results, *, threshold: float = 0.5) -> Matches:
    """Match sound results at one IoU threshold."""
    order_of_image = np.argsort(dataset.image_ids)
    place = np.searchsorted(dataset.image_ids[order_of_image], results.image_ids)
    position = order_of_image[place]
    # Within an image by falling score; equal scores keep their order, as in COCO.
    order = np.lexsort((-results.scores, place))
    order = order[_rank_in_class(place[order], results.labels[order]) < _LIMIT]
    count = len(order)
    image, label = position[order], results.labels[order]
    boxes, score = results.boxes_xywh[order], results.scores[order]
    found = np.full(count, -1, np.int64)
    ignored = np.zeros(count, np.bool_)
    own_iou, other_iou = np.zeros(count), np.zeros(count)
    own_box = np.full(count, -1, np.int64)
    other_box = np.full(count, -1, np.int64)
    edges = np.flatnonzero(np.diff(image, prepend=-1, append=-1))
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        rows = dataset.boxes_of(int(image[begin]))
        if rows.start == rows.stop:
            continue
        here = slice(begin, end)
        crowd = dataset.crowd[rows]
        iou = _iou(boxes[here], dataset.boxes_xywh[rows], crowd)
        same = label[here, None] == dataset.labels[rows][None]
        for into_iou, into_box, mask in (
            (own_iou, own_box, same & ~crowd),
            (other_iou, other_box, ~same & ~crowd),
        ):
            overlaps = np.where(mask, iou, 0.0)
            best = overlaps.argmax(axis=1)
            into_iou[here] = overlaps[np.arange(len(best)), best]
            into_box[here] = np.where(into_iou[here] > 0, best + rows.start, -1)
        taken = _assign(np.where(same, iou, -1.0), crowd, threshold)
        found[here] = np.where(taken >= 0, taken + rows.start, -1)
        ignored[here] = (taken >= 0) & crowd[taken]
    matched = np.zeros(len(dataset.labels), np.bool_)
    matched[found[found >= 0]] = True
    final = np.lexsort((np.arange(count), -score))
    return Matches(
        threshold=threshold,
        row=order[final],
        image=image[final],
        label=label[final],
        score=score[final],
        found=found[final],
        ignored=ignored[final],
        own_iou=own_iou[final],
        own_box=own_box[final],
        other_iou=other_iou[final],
        other_box=other_box[final],
        truth_image=np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)),
        matched=matched,
    )


def _rank_in_class(image: NDArray[np.int64], label: NDArray[np.int64]) -> NDArray[np.int64]:
    """(d,) how many detections of its class and image come before each."""
    order = np.lexsort((np.arange(len(label)), label, image))
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = (np.diff(image[order]) != 0) | (np.diff(label[order]) != 0)
    numbers = np.arange(len(order))
    starts = np.maximum.accumulate(np.where(fresh, numbers, 0))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = numbers - starts
    return ranks


def _iou(
    found: NDArray[np.float64], truth: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(d, m) overlap of xywh boxes; with a crowd, the part of the detection that lies in it."""
    low = np.maximum(found[:, None, :2], truth[None, :, :2])
    high = np.minimum(
        found[:, None, :2] + found[:, None, 2:], truth[None, :, :2] + truth[None, :, 2:]
    )
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    own = (found[:, 2] * found[:, 3])[:, None]
    union = np.where(crowd, own, own + (truth[:, 2] * truth[:, 3])[None] - overlap)
    iou: NDArray[np.float64] = np.zeros_like(overlap)
    np.divide(overlap, union, out=iou, where=union > 0)
    return iou


def _assign(
    iou: NDArray[np.float64], crowd: NDArray[np.bool_], threshold: float
) -> NDArray[np.int64]:
    """(d,) the column each row takes, rows in turn; -1 for none. ``iou`` is -1 across classes."""
    taken = np.full(len(iou), -1, np.int64)
    free = np.ones(len(crowd), np.bool_)
    least = min(threshold, 1 - 1e-10)
    for row in np.flatnonzero(iou.max(axis=1) >= least).tolist():
        for group in (~crowd & free, crowd):
            overlaps = np.where(group, iou[row], -1.0)
            # Of equal overlaps the last box is taken, as pycocotools does.
            best = len(overlaps) - 1 - int(overlaps[::-1].argmax())
            if overlaps[best] >= least:
                taken[row] = best
                free[best] = crowd[best]
                break
    return taken
