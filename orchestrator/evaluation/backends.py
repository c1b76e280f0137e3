"""COCO matching and accumulation by hotcoco, or by pycocotools where that is missing or differs.

hotcoco (https://github.com/derekallman/hotcoco, MIT) does in compiled code what pycocotools 2.0
does and gives the same bits, one to two orders of magnitude faster; pycocotools is the reference.
The guard in front of both removes what they treat differently: images and classes are renumbered
from 1 in the order of their ids, annotations and detections are numbered from 1, and input has been
checked by the caller. Before hotcoco is trusted in a process it has to reproduce the reference's
arrays on a small case that holds crowds, ties and empty images.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from orchestrator.data.label_map import LabelMap
from orchestrator.data.records import Dataset
from orchestrator.evaluation.results import Results

Backend: TypeAlias = Literal["hotcoco", "pycocotools"]

#: Detections per image and class that count, as COCO defines.
LIMITS: Final = (1, 10, 100)
_INFINITE = 1e10

log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Scored:
    """What a backend delivers; -1 where there are no boxes.

    Shape legend: 10 IoU thresholds 0.50 ... 0.95, 101 recalls 0.00 ... 1.00, K labels, B bins,
    3 limits (:data:`LIMITS`).

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
    columns = _Columns.of(dataset, results, bins)
    arrays = _SCORERS[backend or fastest()](columns, bins)
    return scored_of(arrays, dataset.label_map)


def scored_of(arrays: dict[str, Any], label_map: LabelMap) -> Scored:
    """A backend's arrays, whose classes are in the order of their ids, with ours in label order."""
    by_id = np.argsort(np.asarray(label_map.ids, np.int64))
    columns = np.argsort(by_id)
    precision = np.asarray(arrays["precision"], np.float64)[:, :, columns]
    return Scored(
        precision=precision[..., -1],
        scores=np.asarray(arrays["scores"], np.float64)[:, :, columns, 0, -1],
        recall=np.asarray(arrays["recall"], np.float64)[:, columns],
        by_id=by_id,
    )


def _guard_case() -> _Columns:
    """Forty images of drawn boxes with crowds, equal scores, misses and images without either."""
    rng = np.random.default_rng(0)
    truths, founds = 120, 400
    boxes = rng.integers(0, 300, (truths, 4)).astype(np.float64)
    boxes[:, 2:] = boxes[:, 2:] % 150 + 1
    image, label = rng.integers(1, 36, truths), rng.integers(1, 4, truths)
    source = rng.integers(0, truths, founds)
    moved = boxes[source] + rng.normal(0, 3, (founds, 4)).round(1)
    moved[:, 2:] = np.maximum(moved[:, 2:], 0)
    return _Columns(
        images=40,
        classes=4,
        truth_image=image,
        truth_class=label,
        truth_boxes=boxes,
        truth_measure=boxes[:, 2] * boxes[:, 3] * 0.8,
        crowd=rng.random(truths) < 0.1,
        found_image=np.where(rng.random(founds) < 0.9, image[source], rng.integers(1, 41, founds)),
        found_class=np.where(rng.random(founds) < 0.9, label[source], rng.integers(1, 5, founds)),
        found_boxes=moved,
        found_measure=moved[:, 2] * moved[:, 3],
        scores=rng.random(founds).round(1),
    )


@lru_cache(maxsize=1)
def fastest() -> Backend:
    """Hotcoco where it is installed and gives the reference's bits, else pycocotools."""
    try:
        import hotcoco  # noqa: F401
    except ImportError:
        log.info("hotcoco is not installed; pycocotools matches, about 50 times slower")
        return "pycocotools"
    columns = _guard_case()
    try:
        fast = _hotcoco(columns, SIZES)
    # Whatever a foreign extension raises, the reference is there.
    except Exception as error:
        log.warning("hotcoco failed its self-test (%s); pycocotools matches instead", error)
        return "pycocotools"
    reference = _pycocotools(columns, SIZES)
    for name, expected in reference.items():
        if not np.array_equal(fast[name], expected):
            log.warning(
                "hotcoco gives other values than pycocotools in its self-test (%s); "
                "pycocotools matches instead",
                name,
            )
            return "pycocotools"
    return "hotcoco"


@dataclass(frozen=True)
class _Columns:
    """Ground truth and detections as columns, all ids renumbered from 1 in their own order.

    ``truth_measure`` and ``found_measure`` are what :class:`Bins` cut: area or aspect ratio.
    """

    images: int
    classes: int
    truth_image: NDArray[np.int64]
    truth_class: NDArray[np.int64]
    truth_boxes: NDArray[np.float64]
    truth_measure: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    found_image: NDArray[np.int64]
    found_class: NDArray[np.int64]
    found_boxes: NDArray[np.float64]
    found_measure: NDArray[np.float64]
    scores: NDArray[np.float64]

    @classmethod
    def of(cls, dataset: Dataset, results: Results, bins: Bins) -> _Columns:
        ids = np.asarray(dataset.label_map.ids, np.int64)
        class_rank = np.argsort(np.argsort(ids)) + 1
        ordered = np.sort(dataset.image_ids)
        truth_images = np.repeat(dataset.image_ids, np.diff(dataset.offsets))
        found = results.boxes_xywh
        aspect = bins.by_aspect
        return cls(
            images=len(ordered),
            classes=len(ids),
            truth_image=np.searchsorted(ordered, truth_images) + 1,
            truth_class=class_rank[dataset.labels],
            truth_boxes=dataset.boxes_xywh,
            truth_measure=_aspect(dataset.boxes_xywh) if aspect else dataset.areas,
            crowd=dataset.crowd,
            found_image=np.searchsorted(ordered, results.image_ids) + 1,
            found_class=class_rank[results.labels],
            found_boxes=found,
            found_measure=_aspect(found) if aspect else found[:, 2] * found[:, 3],
            scores=results.scores,
        )


def _aspect(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    """Width / height; 0 for a box without height, whose aspect nobody can tell."""
    width, height = boxes_xywh[:, 2], boxes_xywh[:, 3]
    ratio = np.divide(width, height, out=np.zeros(len(width)), where=height > 0)
    return np.minimum(ratio, _INFINITE)


def _hotcoco(columns: _Columns, bins: Bins) -> dict[str, Any]:
    import hotcoco

    images = [{"id": i + 1} for i in range(columns.images)]
    classes = [{"id": i + 1, "name": str(i + 1)} for i in range(columns.classes)]
    truth = hotcoco.COCO.from_arrays(
        images,
        classes,
        columns.truth_image,
        columns.truth_class,
        columns.truth_boxes,
        area=columns.truth_measure,
        iscrowd=columns.crowd,
    )
    if bins.by_aspect:
        # Columns carry no scores, and the loader of results knows areas only.
        tree = {"images": images, "categories": classes, "annotations": list(_found(columns))}
        found = hotcoco.COCO(tree)
    else:
        rows = [columns.found_image, columns.found_boxes, columns.scores, columns.found_class]
        found = truth.load_res(np.column_stack(rows).astype(np.float64))
    evaluation = hotcoco.COCOeval(truth, found, "bbox")
    evaluation.params.area_rng = [list(limits) for limits in bins.limits]
    evaluation.params.area_rng_lbl = list(bins.names)
    evaluation.evaluate()
    evaluation.accumulate()
    return _arrays(evaluation.eval)


def _pycocotools(columns: _Columns, bins: Bins) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(columns, _truth(columns)), _coco(columns, _found(columns)), "bbox"
        )
        evaluation.params.areaRng = [list(limits) for limits in bins.limits]
        evaluation.params.areaRngLbl = list(bins.names)
        evaluation.evaluate()
        evaluation.accumulate()
    return _arrays(evaluation.eval)


def _arrays(tree: Any) -> dict[str, Any]:
    return {name: np.asarray(tree[name]) for name in ("precision", "recall", "scores")}


_SCORERS = {"hotcoco": _hotcoco, "pycocotools": _pycocotools}


def _coco(columns: _Columns, annotations: Iterator[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(columns.images)],
        "categories": [{"id": i + 1} for i in range(columns.classes)],
        "annotations": list(annotations),
    }
    coco.createIndex()
    return coco


def _truth(columns: _Columns) -> Iterator[dict[str, Any]]:
    rows = zip(
        columns.truth_image.tolist(),
        columns.truth_class.tolist(),
        columns.truth_boxes.tolist(),
        columns.truth_measure.tolist(),
        columns.crowd.tolist(),
        strict=True,
    )
    for number, (image, category, box, measure, crowd) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": measure,
            "iscrowd": int(crowd),
        }


def _found(columns: _Columns) -> Iterator[dict[str, Any]]:
    rows = zip(
        columns.found_image.tolist(),
        columns.found_class.tolist(),
        columns.found_boxes.tolist(),
        columns.found_measure.tolist(),
        columns.scores.tolist(),
        strict=True,
    )
    for number, (image, category, box, measure, score_) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": measure,
            "iscrowd": 0,
            "score": score_,
        }
