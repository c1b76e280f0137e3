"""COCO's rules in the form our kernels take them: which boxes count, and matches as images come.

:func:`native.match_detections` needs one image at a time and :func:`native.accumulate` all of them,
so that after the last batch only the accumulation is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

import native
from orchestrator.data.dataset import Dataset
from orchestrator.evaluation.results import Results

#: Detections per image and class that count, as COCO defines.
LIMITS: Final = (1, 10, 100)
#: IoU 0.50, 0.55, ... 0.95 and recall 0.00, 0.01, ... 1.00, with the last bits pycocotools has.
_THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
_INFINITE = 1e10


@dataclass(frozen=True)
class Bins:
    """Which boxes count together: COCO's sizes, or another measure of a box cut into ranges.

    A box outside a range is neither missed nor, unless it matches one inside, a false alarm.

    Attributes:
        names: of the ranges; the first holds all boxes.
        limits: lower and upper end of each, both included, as pycocotools has it.
        by_aspect: whether they are of width / height instead of the area in square pixels.
    """

    names: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]
    by_aspect: bool = False


#: COCO's own: 32 x 32 and 96 x 96 pixels part the sizes.
SIZES: Final = Bins(
    ("all", "small", "medium", "large"),
    ((0.0, _INFINITE), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, _INFINITE)),
)
#: Width to height: taller than 1:2, between, wider than 2:1.
ASPECTS: Final = Bins(
    ("all", "tall", "square", "wide"),
    ((0.0, _INFINITE), (0.0, 0.5), (0.5, 2.0), (2.0, _INFINITE)),
    by_aspect=True,
)


class Arrays(NamedTuple):
    """What :class:`~orchestrator.evaluation.backends.Scored` holds, classes in order of id."""

    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: NDArray[np.float64]


@dataclass(frozen=True)
class Columns:
    """Ground truth with images and classes numbered from 0 in the order of their ids.

    Attributes:
        truth: the boxes; their measure is what the bins cut, area or aspect ratio.
        classes: how many.
        image_ids: (n,) rising ids of the images.
        class_ranks: (K,) number of each label.
        by_aspect: whether the measure is an aspect ratio.
    """

    truth: native.Annotations
    classes: int
    image_ids: NDArray[np.int64]
    class_ranks: NDArray[np.int64]
    by_aspect: bool

    @classmethod
    def of(cls, dataset: Dataset, bins: Bins) -> Columns:
        """Renumber the annotations of a data set."""
        ranks = np.argsort(np.argsort(np.asarray(dataset.label_map.ids, np.int64)))
        counts = np.diff(dataset.offsets)
        order = np.argsort(dataset.image_ids)
        rows = np.argsort(np.repeat(np.argsort(order), counts), kind="stable")
        boxes = dataset.boxes_xywh[rows]
        truth = native.Annotations(
            offsets=np.concatenate([[0], np.cumsum(counts[order])]),
            labels=ranks[dataset.labels[rows]],
            boxes=boxes,
            measures=_aspect(boxes) if bins.by_aspect else dataset.areas[rows],
            crowd=dataset.crowd[rows],
        )
        return cls(truth, len(ranks), dataset.image_ids[order], ranks, bins.by_aspect)

    def found(self, results: Results) -> native.Detections:
        """Detections in the same numbers."""
        boxes = results.boxes_xywh
        return native.Detections(
            images=np.searchsorted(self.image_ids, results.image_ids),
            labels=self.class_ranks[results.labels],
            boxes=boxes,
            measures=_aspect(boxes) if self.by_aspect else boxes[:, 2] * boxes[:, 3],
            scores=results.scores,
        )

    @property
    def truth_images(self) -> NDArray[np.int64]:
        """(m,) image of each box."""
        return np.repeat(np.arange(len(self.image_ids)), np.diff(self.truth.offsets))


def _aspect(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width / height; 0 for a box without height, whose aspect nobody can tell."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    ratio = np.divide(width, height, out=np.zeros(len(width)), where=height > 0)
    return np.minimum(ratio, _INFINITE)


_NOTHING = native.Detections(
    images=np.zeros(0, np.int64),
    labels=np.zeros(0, np.int64),
    boxes=np.zeros((0, 4)),
    measures=np.zeros(0),
    scores=np.zeros(0),
)


class Grader:
    """Verdicts of our kernels on detections as they come, and the arrays once all have come.

    Args:
        columns: ground truth.
        bins: which boxes count together.
    """

    def __init__(self, columns: Columns, bins: Bins) -> None:
        truth = columns.truth
        self._truth = truth
        ranges = np.array(bins.limits)
        self._match_params = native.MatchParams(_THRESHOLDS, ranges, LIMITS[-1])
        low, high = ranges.T
        counts = ~truth.crowd[:, None] & (truth.measures[:, None] >= low)
        counts &= truth.measures[:, None] <= high
        boxes = np.zeros((columns.classes, len(ranges)), np.int64)
        np.add.at(boxes, truth.labels, counts)
        self._accumulate_params = native.AccumulateParams(
            boxes, len(_THRESHOLDS), _RECALLS, np.array(LIMITS)
        )
        self._parts: list[native.MatchedDetections] = []
        self.add(_NOTHING)

    def add(self, found: native.Detections) -> None:
        """Match all detections of some images that did not come before."""
        matches = native.match_detections(found, self._truth, self._match_params)
        self._parts.append(
            native.MatchedDetections(
                images=found.images,
                labels=found.labels,
                scores=found.scores,
                true_positives=matches.true_positives,
                false_positives=matches.false_positives,
                ranks=matches.ranks,
            )
        )

    def arrays(self) -> Arrays:
        """Of everything added so far; images that never came are missed."""
        return Arrays(
            *native.accumulate(native.MatchedDetections.join(self._parts), self._accumulate_params)
        )
