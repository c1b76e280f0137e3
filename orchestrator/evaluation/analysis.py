"""All that is known about a set of detections, as one tree of plain values.

It is what ``evaluation.json`` holds and what a report page is drawn from. Everything is derived
from the two matchings below it: COCO's over ten IoU thresholds, and the one at IoU 0.5 whose single
detections can be looked at.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

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
from orchestrator.evaluation.matching import Matches, match, match_at
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

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "error": self.error,
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "score": self.score.tolist(),
            "precision": self.precision.tolist(),
        }


@dataclass(frozen=True)
class ImageErrors:
    """What went wrong in one image at IoU 0.5, detections above the working threshold.

    Attributes:
        image_id, file: of the image.
        missed: annotated boxes without a detection (false negatives).
        false_positives: detections that match no box.
    """

    image_id: int
    file: str
    missed: int
    false_positives: int


class ClassAtScore(NamedTuple):
    """One class at IoU 0.5, detections of at least the working score.

    Attributes:
        name: of the class.
        true_positives, false_positives: detections that match a box, and those that match none.
        missed: boxes without a detection (false negatives).
    """

    name: str
    true_positives: int
    false_positives: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of the detections that are right; -1 without any."""
        return _share(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of the boxes that were detected; -1 without any."""
        return _share(self.true_positives, self.true_positives + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; -1 without detections and boxes."""
        wrong = self.false_positives + self.missed
        return _share(2 * self.true_positives, 2 * self.true_positives + wrong)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else -1.0


@dataclass(frozen=True)
class Analysis:
    """The result of :func:`analyse`.

    Attributes:
        label_map: of the data set.
        metrics: the 12 numbers and those of each class.
        coco_curves: precision and recall by size, from which curves are drawn.
        splits: AP and AR100 of boxes by size and by aspect ratio.
        working_score: the score at which F1 over all classes is highest at IoU 0.5.
        at_working_score: of each class, in label order.
        confusion: at that score.
        errors: kinds of error at IoU 0.5 and their cost.
        calibration: at IoU 0.5; None where scores outside 0 to 1 are no probabilities.
        score_note: what is to be said of such scores; empty otherwise.
        worst: images with most errors at the working score, worst first.
        backend: what matched.
    """

    label_map: LabelMap
    metrics: CocoMetrics
    coco_curves: native.Curves
    splits: dict[str, dict[str, dict[str, float]]]
    working_score: float
    at_working_score: tuple[ClassAtScore, ...]
    confusion: Confusion
    errors: Breakdown
    calibration: Calibration | None
    score_note: str
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
            "at_working_score": [
                one._asdict() | {"precision": one.precision, "recall": one.recall, "f1": one.f1}
                for one in self.at_working_score
            ],
            "confusion": {
                "threshold": self.confusion.threshold,
                "rows_annotations_columns_detections": [*self.label_map.names, BACKGROUND],
                "counts": self.confusion.counts.tolist(),
            },
            "errors": dataclasses.asdict(self.errors),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
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
    detections: Detections | Results,
    *,
    backend: Backend | None = None,
    curves: native.Curves | None = None,
) -> Analysis:
    """Score detections and take their errors apart.

    Args:
        dataset: ground truth.
        detections: what is scored.
        backend: what matches; None takes the fastest there is.
        curves: what their matching by COCO's sizes gave, if that has been done already.

    Raises:
        DataError: they cannot be scored; see :func:`orchestrator.evaluation.coco.evaluate`.
    """
    results = sound(dataset, detections)
    chosen = backend or fastest()
    curves = curves or coco_curves(dataset, results, backend=chosen)
    by_aspect = coco_curves(dataset, results, bins=ASPECTS, backend=chosen)
    matches = match(dataset, results)
    working = _working_score(dataset, matches)
    note = _score_note(results.scores)
    return Analysis(
        label_map=dataset.label_map,
        metrics=metrics_of(dataset, curves, labels=results.labels, images=results.images),
        coco_curves=curves,
        splits={
            "size": _split(curves, dataset.label_map, SIZES),
            "aspect": _split(by_aspect, dataset.label_map, ASPECTS),
        },
        working_score=working,
        at_working_score=at_score(dataset, matches, working),
        confusion=confuse(dataset, results, threshold=working),
        errors=break_down(dataset, matches),
        calibration=None if note else calibrate(matches),
        score_note=note,
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


def _score_note(scores: NDArray[np.float64]) -> str:
    """What is to be said of scores that are no probabilities; COCO's numbers take any."""
    if ((scores >= 0) & (scores <= 1)).all():
        return ""
    low, high = float(scores.min()), float(scores.max())
    return (
        f"scores go from {low:g} to {high:g} and are no probabilities, so there is no "
        "calibration; COCO's numbers need their order alone. Next: if they are 0 to 100, divide "
        "them by 100"
    )


def _working_score(dataset: Dataset, matches: Matches) -> float:
    """The score at which F1 = 2 TP / (detections + boxes) is highest; 0 without detections."""
    keep = ~matches.ignored
    scores, correct = matches.score[keep], np.cumsum(matches.true_positive[keep])
    if not len(scores):
        return 0.0
    f1 = 2 * correct / (np.arange(1, len(scores) + 1) + int((~dataset.crowd).sum()))
    # A threshold cannot part equal scores.
    last = np.append(np.diff(scores) != 0, True)
    return float(scores[last][np.argmax(f1[last])])


def confuse(dataset: Dataset, results: Results, *, threshold: float) -> Confusion:
    """Match detections of at least a score to boxes regardless of class.

    Those that count are the best hundred of each class in an image, as in all other numbers.
    """
    counted, _ = match_at(dataset, results, [_CONFUSION_IOU])
    rows = np.sort(counted[results.scores[counted] >= threshold])
    chosen = Results(
        images=results.images,
        image_ids=results.image_ids[rows],
        labels=np.zeros(len(rows), np.int64),
        boxes_xywh=results.boxes_xywh[rows],
        scores=results.scores[rows],
    )
    blind = dataclasses.replace(dataset, labels=np.zeros_like(dataset.labels))
    everyone = max(1, len(rows))
    taking_part, matches = match_at(blind, chosen, [_CONFUSION_IOU], limit=everyone)
    annotation = matches.boxes[taking_part]
    none = len(dataset.label_map)
    counts = np.zeros((none + 1, none + 1), np.int64)
    # Row -1 of the boxes, which false positives point at, is background.
    counting = ~np.append(dataset.crowd, False)[annotation]
    truth = np.append(dataset.labels, none)[annotation]
    guess = results.labels[rows[taking_part]]
    np.add.at(counts, (truth[counting], guess[counting]), 1)
    missed = ~dataset.crowd
    missed[annotation[annotation >= 0]] = False
    counts[:none, none] = np.bincount(dataset.labels[missed], minlength=none)
    return Confusion(threshold, counts)


def calibrate(matches: Matches) -> Calibration:
    """Mean score against precision, in ten bins of equal width."""
    keep = ~matches.ignored
    score_, correct = matches.score[keep], matches.true_positive[keep].astype(np.float64)
    edges = np.linspace(0.0, 1.0, _CALIBRATION_BINS + 1)
    inside = np.clip((score_ * _CALIBRATION_BINS).astype(np.int64), 0, _CALIBRATION_BINS - 1)
    counts = np.bincount(inside, minlength=_CALIBRATION_BINS)
    safe = np.maximum(counts, 1)
    mean_score = np.bincount(inside, score_, _CALIBRATION_BINS) / safe
    precision = np.bincount(inside, correct, _CALIBRATION_BINS) / safe
    gaps = np.abs(mean_score - precision) * counts
    return Calibration(
        edges, counts, mean_score, precision, float(gaps.sum() / max(len(correct), 1))
    )


def at_score(dataset: Dataset, matches: Matches, score: float) -> tuple[ClassAtScore, ...]:
    """What each class comes to when detections below a score are left out, in label order."""
    classes = len(dataset.label_map)
    shown = matches.score >= score
    true = np.bincount(matches.label[shown & matches.true_positive], minlength=classes)
    false = np.bincount(matches.label[shown & matches.false_positive], minlength=classes)
    boxes = np.bincount(dataset.labels[~dataset.crowd], minlength=classes)
    columns = (true.tolist(), false.tolist(), (boxes - true).tolist())
    return tuple(
        ClassAtScore(name, tp, fp, fn)
        for name, tp, fp, fn in zip(dataset.label_map.names, *columns, strict=True)
    )


def _worst(dataset: Dataset, matches: Matches, working: float) -> tuple[ImageErrors, ...]:
    shown = matches.score >= working
    matched = np.zeros(len(dataset.labels), np.bool_)
    matched[matches.annotation[shown & ~matches.false_positive]] = True
    images = len(dataset)
    missed = np.bincount(matches.truth_image[~matched & ~dataset.crowd], minlength=images)
    false = np.bincount(matches.image[shown & matches.false_positive], minlength=images)
    order = np.lexsort((dataset.image_ids, -(missed + false)))[:_WORST_IMAGES]
    return tuple(
        ImageErrors(
            image_id=int(dataset.image_ids[i]),
            file=dataset.files[i],
            missed=int(missed[i]),
            false_positives=int(false[i]),
        )
        for i in order.tolist()
        if missed[i] + false[i]
    )
