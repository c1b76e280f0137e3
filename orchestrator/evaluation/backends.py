"""COCO matching and accumulation by our kernels, by hotcoco, or by pycocotools.

pycocotools 2.0 is the reference: the others give its bits, two orders of magnitude faster. The
kernels of :mod:`native` are taken where they were compiled, hotcoco
(https://github.com/derekallman/hotcoco, MIT) where they were not. Before either is trusted in a
process it has to reproduce the reference's arrays on a small case that holds crowds, ties and empty
images.

The guard in front of all three removes what they treat differently: images and classes are numbered
in the order of their ids, annotations and detections from 1, and input has been checked by the
caller.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import native
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.grading import SIZES, Arrays, Bins, Columns, Grader
from orchestrator.evaluation.results import Results

Backend: TypeAlias = Literal["native", "hotcoco", "pycocotools"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What a backend delivers; -1 where there are no boxes.

    Shape legend: 10 IoU thresholds 0.50 ... 0.95, 101 recalls 0.00 ... 1.00, K labels, B bins,
    3 limits (:data:`~orchestrator.evaluation.grading.LIMITS`).

    Attributes:
        precision: (10, 101, K, B) with at most 100 detections.
        scores: (10, 101, K) the detection score at each recall, all boxes; 0 where not reached.
        recall: (10, K, B, 3) highest recall.
        by_id: (K,) labels in the order of their data-set ids. Means are taken in that order, which
            decides their last bit.
    """

    precision: NDArray[np.float64]
    scores: NDArray[np.float64]
    recall: NDArray[np.float64]
    by_id: NDArray[np.int64]

    def average_precision(self, bin: int = 0, iou: int | None = None) -> float:
        """Mean precision of a bin over classes, recalls and IoU thresholds (or one of them)."""
        rows = slice(None) if iou is None else slice(iou, iou + 1)
        return _mean(self.precision[rows][:, :, self.by_id, bin])

    def average_recall(self, bin: int = 0, limit: int = 2) -> float:
        """Mean of the highest recall of a bin over classes and IoU thresholds."""
        return _mean(self.recall[:, self.by_id, bin, limit])


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[values > -1]
    return float(np.mean(defined)) if len(defined) else -1.0


def score(
    dataset: Dataset, results: Results, *, bins: Bins = SIZES, backend: Backend | None = None
) -> Scored:
    """Match and accumulate sound results; None takes the fastest backend that can be trusted."""
    columns = Columns.of(dataset, bins)
    arrays = _SCORERS[backend or fastest()](columns, columns.found(results), bins)
    return scored_of(arrays, dataset.label_map)


def scored_of(arrays: Arrays, label_map: LabelMap) -> Scored:
    """A backend's arrays, whose classes are in the order of their ids, with ours in label order."""
    by_id = np.argsort(np.asarray(label_map.ids, np.int64))
    columns = np.argsort(by_id)
    return Scored(
        precision=arrays.precision[:, :, columns],
        scores=arrays.scores[:, :, columns],
        recall=arrays.recall[:, columns],
        by_id=by_id,
    )


@lru_cache(maxsize=1)
def fastest() -> Backend:
    """The first of our kernels and hotcoco that is there and gives the reference's bits.

    pycocotools where neither does.
    """
    there: list[Backend] = ["native"] if native.backend() == "native" else []
    if importlib.util.find_spec("hotcoco") is not None:
        there.append("hotcoco")
    for name in there:
        problem = _difference(name)
        if problem is None:
            return name
        log.warning("%s is not used for evaluation: it %s in its self-test", name, problem)
    log.info("pycocotools matches, about 50 times slower than our kernels or hotcoco")
    return "pycocotools"


def _difference(name: Backend) -> str | None:
    """What is wrong with a backend, if anything."""
    columns, found = _guard_case()
    try:
        fast = _SCORERS[name](columns, found, SIZES)
    # Whatever a foreign extension raises, the reference is there.
    except Exception as error:
        return f"failed ({error})"
    for field, ours, expected in zip(
        Arrays._fields, fast, _pycocotools(columns, found, SIZES), strict=True
    ):
        if not np.array_equal(ours, expected):
            return f"gave another {field} than pycocotools"
    return None


def _guard_case() -> tuple[Columns, native.Detections]:
    """Forty images of drawn boxes with crowds, equal scores, misses and images without either."""
    rng = np.random.default_rng(0)
    images, classes, truths, founds = 40, 4, 120, 400
    boxes = rng.integers(0, 300, (truths, 4)).astype(np.float64)
    boxes[:, 2:] = boxes[:, 2:] % 150 + 1
    image, label = np.sort(rng.integers(0, 35, truths)), rng.integers(0, 3, truths)
    source = rng.integers(0, truths, founds)
    moved = boxes[source] + rng.normal(0, 3, (founds, 4)).round(1)
    moved[:, 2:] = np.maximum(moved[:, 2:], 0)
    truth = native.Annotations(
        offsets=np.searchsorted(image, np.arange(images + 1)),
        labels=label,
        boxes=boxes,
        measures=boxes[:, 2] * boxes[:, 3] * 0.8,
        crowd=rng.random(truths) < 0.1,
    )
    found = native.Detections(
        images=np.where(rng.random(founds) < 0.9, image[source], rng.integers(0, images, founds)),
        labels=np.where(rng.random(founds) < 0.9, label[source], rng.integers(0, classes, founds)),
        boxes=moved,
        measures=moved[:, 2] * moved[:, 3],
        scores=rng.random(founds).round(1),
    )
    return Columns(truth, classes, np.arange(images), np.arange(classes), False), found


def _native(columns: Columns, found: native.Detections, bins: Bins) -> Arrays:
    grader = Grader(columns, bins)
    grader.add(found)
    return grader.arrays()


def _hotcoco(columns: Columns, found: native.Detections, bins: Bins) -> Arrays:
    import hotcoco

    images = [{"id": i + 1} for i in range(len(columns.image_ids))]
    classes = [{"id": i + 1, "name": str(i + 1)} for i in range(columns.classes)]
    truth = hotcoco.COCO.from_arrays(
        images,
        classes,
        columns.truth_images + 1,
        columns.truth.labels + 1,
        columns.truth.boxes,
        area=columns.truth.measures,
        iscrowd=columns.truth.crowd,
    )
    if bins.by_aspect:
        # Columns carry no scores, and the loader of results knows areas only.
        tree = {"images": images, "categories": classes, "annotations": list(_found(found))}
        results = hotcoco.COCO(tree)
    else:
        rows = [found.images + 1, found.boxes, found.scores, found.labels + 1]
        results = truth.load_res(np.column_stack(rows).astype(np.float64))
    evaluation = hotcoco.COCOeval(truth, results, "bbox")
    evaluation.params.area_rng = [list(limits) for limits in bins.limits]
    evaluation.params.area_rng_lbl = list(bins.names)
    evaluation.evaluate()
    evaluation.accumulate()
    return _arrays(evaluation.eval)


def _pycocotools(columns: Columns, found: native.Detections, bins: Bins) -> Arrays:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(columns, _truth(columns)), _coco(columns, _found(found)), "bbox"
        )
        evaluation.params.areaRng = [list(limits) for limits in bins.limits]
        evaluation.params.areaRngLbl = list(bins.names)
        evaluation.evaluate()
        evaluation.accumulate()
    return _arrays(evaluation.eval)


def _arrays(tree: Any) -> Arrays:
    return Arrays(
        precision=np.asarray(tree["precision"], np.float64)[..., -1],
        scores=np.asarray(tree["scores"], np.float64)[:, :, :, 0, -1],
        recall=np.asarray(tree["recall"], np.float64),
    )


_SCORERS = {"native": _native, "hotcoco": _hotcoco, "pycocotools": _pycocotools}


def _coco(columns: Columns, annotations: Iterator[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(len(columns.image_ids))],
        "categories": [{"id": i + 1} for i in range(columns.classes)],
        "annotations": list(annotations),
    }
    coco.createIndex()
    return coco


def _truth(columns: Columns) -> Iterator[dict[str, Any]]:
    truth = columns.truth
    rows = _rows(columns.truth_images, truth.labels, truth.boxes, truth.measures)
    for row, crowd in zip(rows, truth.crowd.tolist(), strict=True):
        yield {**row, "iscrowd": int(crowd)}


def _found(found: native.Detections) -> Iterator[dict[str, Any]]:
    rows = _rows(found.images, found.labels, found.boxes, found.measures)
    for row, score_ in zip(rows, found.scores.tolist(), strict=True):
        yield {**row, "iscrowd": 0, "score": score_}


def _rows(images: Any, labels: Any, boxes: Any, measures: Any) -> Iterator[dict[str, Any]]:
    columns = [column.tolist() for column in (images, labels, boxes, measures)]
    for number, (image, label, box, measure) in enumerate(zip(*columns, strict=True), start=1):
        yield {
            "id": number,
            "image_id": image + 1,
            "category_id": label + 1,
            "bbox": box,
            "area": measure,
        }
