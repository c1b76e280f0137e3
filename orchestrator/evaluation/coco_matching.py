"""COCO's matching of detections with ground truth, and the curves its numbers are read from.

The kernels of :mod:`native` match the detections of an image as they come and read the curves once
all have come. Without a compiler pycocotools does both at the end, about fifty times slower, with
the same bits: it is what the kernels are tested against.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

import native
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results

Backend: TypeAlias = Literal["native", "pycocotools"]

log = logging.getLogger(__name__)

#: Detections per image and class that count, as COCO defines.
LIMITS: Final = (1, 10, 100)
#: IoU 0.50, 0.55, ... 0.95 and recall 0.00, 0.01, ... 1.00, with the last bits pycocotools has.
_THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
_RECALLS: Final = np.linspace(0.0, 1.0, 101)
_INFINITE = 1e10


@dataclass(frozen=True)
class Bins:
    """Which boxes count together: COCO's sizes, or another measure of a box cut into ranges.

    A box outside a range is neither missed nor, unless it matches one inside, a false positive.

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


@cache
def fastest() -> Backend:
    """The compiled kernels where there are any; else pycocotools, which is said once."""
    if native.backend() == "native":
        return "native"
    log.info("pycocotools matches, about 50 times slower than compiled kernels")
    return "pycocotools"


class CocoMatcher:
    """Ground truth in the form the kernels take, and the matches of what has come so far.

    Images are numbered in the order of their ids, which decides between equal scores.

    Args:
        dataset: ground truth.
        bins: which boxes count together.
        limits: detections per image and class that count, rising; precision is of the last.
    """

    def __init__(
        self, dataset: Dataset, bins: Bins = SIZES, limits: tuple[int, ...] = LIMITS
    ) -> None:
        self.bins = bins
        self._limits = limits
        self.classes = len(dataset.label_map)
        counts = np.diff(dataset.offsets)
        order = np.argsort(dataset.image_ids)
        self._image_ids = dataset.image_ids[order]
        rows = np.argsort(np.repeat(np.argsort(order), counts), kind="stable")
        boxes = dataset.boxes_xywh[rows]
        self.truth = native.Annotations(
            offsets=np.concatenate([[0], np.cumsum(counts[order])]),
            labels=dataset.labels[rows],
            boxes=boxes,
            measures=_aspect(boxes) if bins.by_aspect else dataset.areas[rows],
            crowd=dataset.crowd[rows],
        )
        self._params = native.MatchParams(_THRESHOLDS, np.array(bins.limits), limits[-1])
        self._parts: list[native.MatchedDetections] = []

    def columns(self, results: Results) -> native.Detections:
        """Sound results in the kernels' form."""
        boxes = results.boxes_xywh
        return native.Detections(
            images=np.searchsorted(self._image_ids, results.image_ids),
            labels=results.labels,
            boxes=boxes,
            measures=_aspect(boxes) if self.bins.by_aspect else boxes[:, 2] * boxes[:, 3],
            scores=results.scores,
        )

    def add(self, results: Results) -> None:
        """Match all detections of some images that did not come before."""
        detections = self.columns(results)
        matches = native.match_detections(detections, self.truth, self._params)
        self._parts.append(
            native.MatchedDetections(
                images=detections.images,
                labels=detections.labels,
                scores=detections.scores,
                true_positives=matches.true_positives,
                false_positives=matches.false_positives,
                ranks=matches.ranks,
            )
        )

    def curves(self) -> native.Curves:
        """Precision and recall by label; images that never came are missed.

        T is COCO's 10 IoU thresholds, R its 101 recalls, B the bins, L the limits.
        """
        if not self._parts:
            self.add(Results.of(Detections.merge([])))
        low, high = np.array(self.bins.limits).T
        counts = ~self.truth.crowd[:, None] & (self.truth.measures[:, None] >= low)
        counts &= self.truth.measures[:, None] <= high
        boxes = np.zeros((self.classes, len(self.bins.limits)), np.int64)
        np.add.at(boxes, self.truth.labels, counts)
        params = native.AccumulateParams(boxes, len(_THRESHOLDS), _RECALLS, np.array(self._limits))
        return native.accumulate(native.MatchedDetections.join(self._parts), params)


def coco_curves(
    dataset: Dataset, results: Results, *, bins: Bins = SIZES, backend: Backend | None = None
) -> native.Curves:
    """Match sound results and read the curves; None takes the fastest backend there is."""
    matcher = CocoMatcher(dataset, bins)
    if (backend or fastest()) == "native":
        matcher.add(results)
        return matcher.curves()
    from orchestrator.evaluation.pycocotools_fallback import curves_by_pycocotools

    return curves_by_pycocotools(
        matcher.truth, matcher.columns(results), classes=matcher.classes, ranges=bins.limits
    )


def mean_precision(
    curves: native.Curves, label_map: LabelMap, *, bin: int = 0, iou: int | None = None
) -> float:
    """Mean precision of a bin over classes, recalls and IoU thresholds; -1 without boxes.

    Args:
        curves: of some detections.
        label_map: of the data set.
        bin: which boxes count; the first bin holds all.
        iou: position of the only threshold to look at.
    """
    rows = slice(None) if iou is None else slice(iou, iou + 1)
    return _mean(curves.precision[rows][:, :, _by_id(label_map), bin])


def mean_recall(
    curves: native.Curves, label_map: LabelMap, *, bin: int = 0, limit: int = -1
) -> float:
    """Mean of the highest recall of a bin over classes and IoU thresholds; -1 without boxes.

    Args:
        curves: of some detections.
        label_map: of the data set.
        bin: which boxes count; the first bin holds all.
        limit: position of the limit that counts.
    """
    return _mean(curves.recall[:, _by_id(label_map), bin, limit])


def _by_id(label_map: LabelMap) -> NDArray[np.int64]:
    """Labels in the order of their ids: the order of a sum decides its last bit."""
    return np.argsort(np.asarray(label_map.ids, np.int64))


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


def _aspect(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width / height; 0 for a box without height, whose aspect nobody can tell."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    ratio = np.divide(width, height, out=np.zeros(len(width)), where=height > 0)
    return np.minimum(ratio, _INFINITE)
