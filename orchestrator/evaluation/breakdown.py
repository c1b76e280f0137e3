"""What kinds of error a detector makes, and the AP each kind costs (TIDE).

Bolya, Foley, Hays, Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors",
ECCV 2020, https://arxiv.org/abs/2008.08115. A false positive is put into the first kind that
fits, localisation before classification as in the authors' tidecv; the cost of a kind is the AP
gained if an oracle mended all errors of that kind and left the rest alone (section 2.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.evaluation.matching import Matches

KINDS: Final = ("classification", "localisation", "both", "duplicate", "background", "missed")

#: An overlap below it is none: the detection lies on background.
BACKGROUND_IOU: Final = 0.1

_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Breakdown:
    """Errors at one IoU threshold.

    Attributes:
        ap: at that threshold, mean over the classes that have boxes; -1 without any.
        counts: errors by kind.
        costs: AP gained by mending a kind.
    """

    ap: float
    counts: dict[str, int]
    costs: dict[str, float]


def kinds_of(matches: Matches) -> NDArray[np.int64]:
    """(d,) position in :data:`KINDS` of each detection's error; -1 for those that are none."""
    high, low = matches.threshold, BACKGROUND_IOU
    own, other = matches.own_iou, matches.other_iou
    overlaps = np.maximum(own, other)
    chosen = np.select(
        [
            (own >= low) & (own < high),
            other >= high,
            own >= high,
            overlaps < low,
        ],
        [1, 0, 3, 4],
        default=2,
    )
    return np.where(matches.false_positive, chosen, -1)


def break_down(dataset: Dataset, matches: Matches) -> Breakdown:
    """Count the errors of each kind and what they cost."""
    kinds = kinds_of(matches)
    counted = ~dataset.crowd
    # A box that a false positive of the first two kinds overlaps is counted there, not as missed.
    target = np.where(kinds == 0, matches.other_box, np.where(kinds == 1, matches.own_box, -1))
    covered = np.zeros(len(dataset.labels), np.bool_)
    covered[target[target >= 0]] = True
    missed = counted & ~matches.matched & ~covered
    counts = {name: int((kinds == k).sum()) for k, name in enumerate(KINDS)}
    counts["missed"] = int(missed.sum())

    boxes = np.bincount(dataset.labels[counted], minlength=len(dataset.label_map))
    label, keep = matches.label, ~matches.ignored
    true_positive = matches.true_positive
    classes = np.flatnonzero(boxes)
    base = _mean_ap(label, true_positive, keep, boxes, classes)
    costs = {}
    for number, name in enumerate(KINDS):
        if name == "missed":
            fewer = boxes - np.bincount(dataset.labels[missed], minlength=len(boxes))
            # A class that loses all its boxes had no true positive; it keeps its AP of 0, as
            # tidecv's does.
            costs[name] = _mean_ap(label, true_positive, keep, fewer, classes) - base
            continue
        wrong = kinds == number
        mended = _mended(matches, np.where(wrong, target, -1))
        labels = label.copy()
        labels[mended] = dataset.labels[target[mended]]
        kept = keep & (~wrong | mended)
        costs[name] = _mean_ap(labels, true_positive | mended, kept, boxes, classes) - base
    if base < 0:
        costs = dict.fromkeys(KINDS, 0.0)
    return Breakdown(ap=base, counts=counts, costs=costs)


def _mended(matches: Matches, target: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(d,) errors that become true positives: of those at a missed box, the one of best score."""
    chosen = np.zeros(len(target), np.bool_)
    wanting = np.flatnonzero(target >= 0)
    wanting = wanting[~matches.matched[target[wanting]]]
    _, first = np.unique(target[wanting], return_index=True)
    chosen[wanting[first]] = True
    return chosen


def _mean_ap(
    label: NDArray[np.int64],
    true_positive: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    boxes: NDArray[np.int64],
    classes: NDArray[np.int64],
) -> float:
    """Mean over ``classes`` of COCO's interpolated AP; detections are best first."""
    values = []
    for number in classes.tolist():
        rows = keep & (label == number)
        values.append(average_precision(true_positive[rows], int(boxes[number])))
    return float(np.mean(values)) if values else -1.0


def average_precision(true_positive: NDArray[np.bool_], boxes: int) -> float:
    """Precision at 101 recalls, averaged, of a ranked list of true and false positives."""
    count = len(true_positive)
    if not count or not boxes:
        return 0.0
    so_far = np.cumsum(true_positive)
    precision = so_far / np.arange(1, count + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(so_far / boxes, _RECALLS, side="left")
    return float(np.where(at < count, envelope[np.minimum(at, count - 1)], 0.0).mean())
