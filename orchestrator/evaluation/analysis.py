"""All that is known about a set of detections, as one tree of plain values.

It is what ``evaluation.json`` holds and what a report page is drawn from. Everything is derived
from the two matchings below it: COCO's over ten IoU thresholds, and the one at IoU 0.5 whose single
detections can be looked at.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import native
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.breakdown import Breakdown, break_down
from orchestrator.evaluation.coco import CocoMetrics, metrics_of, sound
from orchestrator.evaluation.coco_matching import (
    ASPECTS,
    SIZES,
    Backend,
    Bins,
    coco_curves,
    fastest,
    mean_precision,
    mean_recall,
)
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.matching import Matches, judge, match
from orchestrator.evaluation.results import Results

BACKGROUND: Final = "background"
_CALIBRATION_BINS = 10
_CONFUSION_IOU = 0.5
_WORST_IMAGES = 12


@dataclass(frozen=True)
class Confusion:
    """Boxes against detections at IoU 0.5, whatever their classes.

    Attributes:
        threshold: lowest score of the detections that were counted.
        counts: (K + 1, K + 1); row = class of the box, column = class of the detection. The last
            row holds detections on background, the last column missed boxes.
    """

    threshold: float
    counts: NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """How far scores are probabilities of being right (Guo et al., ICML 2017, equation 3).

    Attributes:
        edges: (b + 1,) of the bins of scores.
        counts: (b,) detections; ``score`` and ``precision`` are their means, 0 without any.
        error: expected calibration error, mean of abs(score - precision) over detections.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    score: NDArray[np.float64]
    precision: NDArray[np.float64]
    error: float


@dataclass(frozen=True)
class ImageErrors:
    """What went wrong in one image at IoU 0.5, detections above the working threshold.

    Attributes:
        image_id, file: of the image.
        missed: boxes nobody found.
        false_alarms: detections that found none.
    """

    image_id: int
    file: str
    missed: int
    false_alarms: int


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyse`.

    Attributes:
        label_map: of the data set.
        metrics: the 12 numbers and those of each class.
        coco_curves: precision and recall by size, from which curves are drawn.
        splits: AP and AR100 of boxes by size and by aspect ratio.
        working_score: the score at which F1 over all classes is highest at IoU 0.5.
        confusion: at that score.
        errors: kinds of error at IoU 0.5 and their cost.
        calibration: at IoU 0.5.
        worst: images with most errors at the working score, worst first.
        backend: what matched.
    """

    label_map: LabelMap
    metrics: CocoMetrics
    coco_curves: native.Curves
    splits: dict[str, dict[str, dict[str, float]]]
    working_score: float
    confusion: Confusion
    errors: Breakdown
    calibration: Calibration
    worst: tuple[ImageErrors, ...]
    backend: Backend

    def to_json(self) -> dict[str, Any]:
        """Plain values; curves have 101 precisions at the recalls 0.00, 0.01 ... 1.00."""
        return {
            "metrics": self.metrics.numbers,
            "unseen_images": self.metrics.unseen_images,
            "classes": [one._asdict() for one in self.metrics.classes],
            "splits": self.splits,
            "curves": self.curves(),
            "working_score": self.working_score,
            "confusion": {
                "threshold": self.confusion.threshold,
                "rows_truth_columns_found": [*self.label_map.names, BACKGROUND],
                "counts": self.confusion.counts.tolist(),
            },
            "errors": dataclasses.asdict(self.errors),
            "calibration": {
                "error": self.calibration.error,
                "edges": self.calibration.edges.tolist(),
                "counts": self.calibration.counts.tolist(),
                "score": self.calibration.score.tolist(),
                "precision": self.calibration.precision.tolist(),
            },
            "worst_images": [dataclasses.asdict(image) for image in self.worst],
            "evaluator": self.backend,
        }

    def curves(self) -> dict[str, Any]:
        """Precision over recall: over all classes at three thresholds, and at 0.50 by class."""
        precision = self.coco_curves.precision[..., 0]
        there = precision[0, 0] > -1
        whole = precision[:, :, there]
        if not there.any():
            return {"all": {}, "classes": {}}
        return {
            "all": {
                "0.50": whole[0].mean(axis=1).tolist(),
                "0.75": whole[5].mean(axis=1).tolist(),
                "0.50:0.95": whole.mean(axis=(0, 2)).tolist(),
            },
            "classes": {
                name: precision[0, :, label].tolist()
                for label, name in enumerate(self.label_map.names)
                if there[label]
            },
        }


def analyse(
    dataset: Dataset,
    found: Detections | Results,
    *,
    backend: Backend | None = None,
    curves: native.Curves | None = None,
) -> Analysis:
    """Score detections and take their errors apart.

    Args:
        dataset: ground truth.
        found: detections.
        backend: what matches; None takes the fastest there is.
        curves: what their matching by COCO's sizes gave, if that has been done already.

    Raises:
        DataError: they cannot be scored; see :func:`orchestrator.evaluation.coco.evaluate`.
    """
    results = sound(dataset, found)
    chosen = backend or fastest()
    curves = curves or coco_curves(dataset, results, backend=chosen)
    by_aspect = coco_curves(dataset, results, bins=ASPECTS, backend=chosen)
    matches = match(dataset, results)
    working = _working_score(dataset, matches)
    return Analysis(
        label_map=dataset.label_map,
        metrics=metrics_of(dataset, curves, labels=results.labels, images=results.images),
        coco_curves=curves,
        splits={
            "size": _split(curves, dataset.label_map, SIZES),
            "aspect": _split(by_aspect, dataset.label_map, ASPECTS),
        },
        working_score=working,
        confusion=confuse(dataset, results, threshold=working),
        errors=break_down(dataset, matches),
        calibration=calibrate(matches),
        worst=_worst(dataset, matches, working),
        backend=chosen,
    )


def _split(curves: native.Curves, label_map: LabelMap, bins: Bins) -> dict[str, dict[str, float]]:
    return {
        name: {
            "AP": mean_precision(curves, label_map, bin=number),
            "AR100": mean_recall(curves, label_map, bin=number),
        }
        for number, name in enumerate(bins.names)
    }


def _working_score(dataset: Dataset, matches: Matches) -> float:
    """The score at which F1 = 2 * hits / (detections + boxes) is highest; 0 without detections."""
    keep = ~matches.ignored
    scores, hits = matches.score[keep], np.cumsum(matches.hit[keep])
    if not len(scores):
        return 0.0
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + int((~dataset.crowd).sum()))
    # A threshold cannot part equal scores.
    last = np.append(np.diff(scores) != 0, True)
    return float(scores[last][np.argmax(f1[last])])


def confuse(dataset: Dataset, results: Results, *, threshold: float) -> Confusion:
    """Match detections of at least a score to boxes regardless of class."""
    rows = np.flatnonzero(results.scores >= threshold)
    chosen = Results(
        images=results.images,
        image_ids=results.image_ids[rows],
        labels=np.zeros(len(rows), np.int64),
        boxes_xywh=results.boxes_xywh[rows],
        scores=results.scores[rows],
    )
    blind = dataclasses.replace(dataset, labels=np.zeros_like(dataset.labels))
    taking_part, matches_at = judge(blind, chosen, [_CONFUSION_IOU])
    found = matches_at.boxes[taking_part]
    none = len(dataset.label_map)
    counts = np.zeros((none + 1, none + 1), np.int64)
    # Row -1 of the boxes, which false alarms point at, is background.
    counting = ~np.append(dataset.crowd, False)[found]
    truth = np.append(dataset.labels, none)[found]
    guess = results.labels[rows[taking_part]]
    np.add.at(counts, (truth[counting], guess[counting]), 1)
    missed = ~dataset.crowd
    missed[found[found >= 0]] = False
    counts[:none, none] = np.bincount(dataset.labels[missed], minlength=none)
    return Confusion(threshold, counts)


def calibrate(matches: Matches) -> Calibration:
    """Mean score against precision, in ten bins of equal width."""
    keep = ~matches.ignored
    score_, hit = matches.score[keep], matches.hit[keep].astype(np.float64)
    edges = np.linspace(0.0, 1.0, _CALIBRATION_BINS + 1)
    inside = np.clip((score_ * _CALIBRATION_BINS).astype(np.int64), 0, _CALIBRATION_BINS - 1)
    counts = np.bincount(inside, minlength=_CALIBRATION_BINS)
    safe = np.maximum(counts, 1)
    mean_score = np.bincount(inside, score_, _CALIBRATION_BINS) / safe
    precision = np.bincount(inside, hit, _CALIBRATION_BINS) / safe
    gaps = np.abs(mean_score - precision) * counts
    return Calibration(edges, counts, mean_score, precision, float(gaps.sum() / max(len(hit), 1)))


def _worst(dataset: Dataset, matches: Matches, working: float) -> tuple[ImageErrors, ...]:
    shown = matches.score >= working
    found = np.zeros(len(dataset.labels), np.bool_)
    found[matches.found[shown & (matches.found >= 0)]] = True
    images = len(dataset)
    missed = np.bincount(matches.truth_image[~found & ~dataset.crowd], minlength=images)
    alarms = np.bincount(matches.image[shown & (matches.found < 0)], minlength=images)
    order = np.lexsort((dataset.image_ids, -(missed + alarms)))[:_WORST_IMAGES]
    return tuple(
        ImageErrors(
            image_id=int(dataset.image_ids[i]),
            file=dataset.files[i],
            missed=int(missed[i]),
            false_alarms=int(alarms[i]),
        )
        for i in order.tolist()
        if missed[i] + alarms[i]
    )
