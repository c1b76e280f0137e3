"""The 12 COCO numbers (Lin et al., ECCV 2014), as pycocotools computes them.

One evaluator serves training, files and any number of workers. What goes into it is fixed here, so
that none of the ways in which COCO evaluators go silently wrong can be met: annotation ids count
from 1 (pycocotools takes a match with id 0 for a miss), all images of the data set take part, boxes
without detections are misses instead of an ``IndexError``, and whatever is not finite or belongs to
no image or class of the data set is refused.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

import native
from orchestrator.config.metrics import Metric
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.coco_tables import positions_in
from orchestrator.errors import DataError
from orchestrator.evaluation.coco_matching import (
    LIMITS,
    Backend,
    CocoMatcher,
    coco_curves,
    fastest,
    mean_precision,
    mean_recall,
)
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results
from orchestrator.storage.atomic import write_atomic

#: Names of the 12 numbers, without the split.
METRICS: Final[tuple[str, ...]] = tuple(name.removeprefix("val/") for name in get_args(Metric))

#: With what spreadsheets take a cell for a formula, after OWASP's "CSV Injection".
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")
#: Positions of IoU 0.50 and 0.75 in COCO's thresholds 0.50, 0.55, ... 0.95.
_IOU50, _IOU75 = 0, 5


class ClassScore(NamedTuple):
    """What one class scored, over all box sizes and at most 100 detections an image.

    Attributes:
        name: of the class.
        category_id: its id in the data set.
        boxes: annotated, crowds not counted.
        detections: of this class.
        ap: mean over the IoU thresholds 0.50, 0.55, ... 0.95; -1 without boxes, like the others.
        ap50, ap75: at one threshold.
        ar100: highest recall, mean over the thresholds.
    """

    name: str
    category_id: int
    boxes: int
    detections: int
    ap: float
    ap50: float
    ap75: float
    ar100: float


@dataclass(frozen=True)
class CocoMetrics:
    """The result of an evaluation.

    Attributes:
        numbers: the 12 numbers by name, in the order of :data:`METRICS`. -1 where the data set has
            no box of that size, as pycocotools gives it.
        classes: scores by class, in label order.
        unseen_images: images of the data set that nobody looked at; their boxes count as missed.
    """

    numbers: dict[str, float]
    classes: tuple[ClassScore, ...]
    unseen_images: int

    @property
    def per_class(self) -> dict[str, float]:
        """AP by class name; -1 for a class without boxes."""
        return {one.name: one.ap for one in self.classes}


def evaluate(
    dataset: Dataset, detections: Detections | Results, *, backend: Backend | None = None
) -> CocoMetrics:
    """Score detections against all images of a data set.

    The numbers are a function of what was detected in each image: how images are ordered, or were
    spread over workers, changes no bit. Between equal scores in one image the first counts first,
    as in pycocotools.

    Args:
        dataset: ground truth; crowd boxes are ignored as COCO defines.
        detections: merged over all ranks. Images that are missing from it count as missed.
        backend: what matches; None takes the fastest there is. The bits are the same.

    Raises:
        DataError: a score or box is not finite, a box has a negative side, or a detection belongs
            to an image or class that the data set does not have.
    """
    results = sound(dataset, detections)
    curves = coco_curves(dataset, results, backend=backend)
    return metrics_of(dataset, curves, labels=results.labels, images=results.images)


def metrics_of(
    dataset: Dataset,
    curves: native.Curves,
    *,
    labels: NDArray[np.int64],
    images: NDArray[np.int64],
) -> CocoMetrics:
    """The numbers of sound results that have been matched by COCO's sizes.

    Args:
        dataset: ground truth.
        curves: what matching them gave.
        labels: (d,) of the detections, in any order.
        images: ids of the images that were looked at.
    """
    return CocoMetrics(
        numbers=_numbers(curves, dataset.label_map),
        classes=_class_scores(dataset, labels, curves),
        unseen_images=int(np.isin(dataset.image_ids, images, invert=True).sum()),
    )


def at_limit(dataset: Dataset, results: Results, limit: int) -> dict[str, float]:
    """AP, AP50, AP75 and AR with up to ``limit`` detections of a class in an image.

    COCO's own limit is 100, which images with more boxes than that cannot meet.

    Args:
        dataset: ground truth.
        results: sound ones.
        limit: at least 1.
    """
    matcher = CocoMatcher(dataset, limits=(limit,))
    matcher.add(results)
    curves, label_map = matcher.curves(), dataset.label_map
    return {
        f"AP@{limit}": mean_precision(curves, label_map),
        f"AP50@{limit}": mean_precision(curves, label_map, iou=_IOU50),
        f"AP75@{limit}": mean_precision(curves, label_map, iou=_IOU75),
        f"AR@{limit}": mean_recall(curves, label_map),
    }


def write_per_class(path: Path, metrics: CocoMetrics) -> None:
    """Write the scores of every class as CSV; -1 where a class has no boxes, as COCO does."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("class", "category_id", "boxes", "detections", "AP", "AP50", "AP75", "AR100"))
    writer.writerows(
        (
            cell(one.name),
            one.category_id,
            one.boxes,
            one.detections,
            one.ap,
            one.ap50,
            one.ap75,
            one.ar100,
        )
        for one in metrics.classes
    )
    write_atomic(path, text.getvalue().encode("utf-8"))


def cell(name: str) -> str:
    """A name that spreadsheets show instead of computing it: the quote says that it is text."""
    return f"'{name}" if name.startswith(_FORMULA) else name


def sound(dataset: Dataset, detections: Detections | Results) -> Results:
    """Detections that can be scored against ``dataset``.

    Raises:
        DataError: see :func:`evaluate`; everything that is wrong is listed.
    """
    results = detections if isinstance(detections, Results) else Results.of(detections)
    finite = np.isfinite(results.scores) & np.isfinite(results.boxes_xywh).all(axis=1)
    classes = len(dataset.label_map)
    wrong = {
        "have a score or box that is NaN or infinite": ~finite,
        "have a box of negative width or height": (results.boxes_xywh[:, 2:] < 0).any(axis=1),
        f"have a label outside 0..{classes - 1}": (
            (results.labels < 0) | (results.labels >= classes)
        ),
        "are of images that the data set does not have": (
            ~positions_in(results.image_ids, dataset.image_ids)[1]
        ),
    }
    lines = [
        f"  {int(rows.sum())} of {len(results)} detections {what}, "
        f"the first in image {results.image_ids[np.argmax(rows)]}"
        for what, rows in wrong.items()
        if rows.any()
    ]
    strangers = results.images[~positions_in(results.images, dataset.image_ids)[1]]
    if len(strangers) and not wrong["are of images that the data set does not have"].any():
        lines.append(
            f"  {len(strangers)} of {len(results.images)} images are not in the data set, "
            f"the first is {strangers[0]}"
        )
    if lines:
        lines.append("check that detections and annotations are of the same split and label map")
        raise DataError("\n".join(["detections cannot be scored:", *lines]))
    return results


def _numbers(curves: native.Curves, label_map: LabelMap) -> dict[str, float]:
    """The 12 numbers, in their order; see ``COCOeval.summarize`` of pycocotools."""
    values = [
        mean_precision(curves, label_map),
        mean_precision(curves, label_map, iou=_IOU50),
        mean_precision(curves, label_map, iou=_IOU75),
        *(mean_precision(curves, label_map, bin=size) for size in (1, 2, 3)),
        *(mean_recall(curves, label_map, limit=limit) for limit in range(len(LIMITS))),
        *(mean_recall(curves, label_map, bin=size) for size in (1, 2, 3)),
    ]
    return dict(zip(METRICS, values, strict=True))


def _class_scores(
    dataset: Dataset, labels: NDArray[np.int64], curves: native.Curves
) -> tuple[ClassScore, ...]:
    classes = len(dataset.label_map)
    boxes = np.bincount(dataset.labels[~dataset.crowd], minlength=classes)
    detections = np.bincount(labels, minlength=classes)
    ids = dataset.label_map.ids
    return tuple(
        ClassScore(
            name=name,
            category_id=ids[label],
            boxes=int(boxes[label]),
            detections=int(detections[label]),
            ap=_of_class(curves.precision[:, :, label, 0]),
            ap50=_of_class(curves.precision[_IOU50, :, label, 0]),
            ap75=_of_class(curves.precision[_IOU75, :, label, 0]),
            ar100=_of_class(curves.recall[:, label, 0, -1]),
        )
        for label, name in enumerate(dataset.label_map.names)
    )


def _of_class(values: NDArray[np.float64]) -> float:
    """Mean of a class's values; they are -1 either all or none."""
    return float(values.mean())


class StreamingEvaluator:
    """Takes detections part by part and ends with the bits `evaluate` gives for all of them.

    With compiled kernels a part is matched when it comes; with pycocotools, which cannot do that,
    at the end. An image that comes again (padding of a last batch) is not looked at a second time.

    Args:
        dataset: ground truth.
        backend: what matches; None takes the fastest there is.
    """

    def __init__(self, dataset: Dataset, *, backend: Backend | None = None) -> None:
        self.dataset = dataset
        self.backend = backend or fastest()
        self._parts: list[Detections] = []
        self._seen = np.zeros(len(dataset), np.bool_)
        self._matcher = CocoMatcher(dataset) if self.backend == "native" else None

    def add(self, part: Detections) -> None:
        """Match the detections of some images.

        Raises:
            DataError: they cannot be scored; see
                :func:`~orchestrator.evaluation.coco.evaluate`. Nothing was taken then.
        """
        sound(self.dataset, part)
        where, _ = positions_in(part.images, self.dataset.image_ids)
        fresh = np.unique(where[~self._seen[where]])
        self._seen[fresh] = True
        keep = np.isin(part.image_ids, self.dataset.image_ids[fresh])
        taken = Detections(
            images=self.dataset.image_ids[fresh],
            image_ids=part.image_ids[keep],
            labels=part.labels[keep],
            boxes=part.boxes[keep],
            scores=part.scores[keep],
        )
        self._parts.append(taken)
        if self._matcher is not None:
            self._matcher.add(Results.of(taken))

    def detections(self) -> Detections:
        """Everything taken so far, merged."""
        return Detections.merge(self._parts)

    def curves(self) -> native.Curves:
        """Those of all that came; images that never came are missed."""
        if self._matcher is None:
            return coco_curves(self.dataset, Results.of(self.detections()), backend=self.backend)
        return self._matcher.curves()

    def finish(self) -> CocoMetrics:
        """The numbers; images that never came count as missed."""
        return metrics_of(
            self.dataset,
            self.curves(),
            labels=np.concatenate([part.labels for part in [_NOTHING, *self._parts]]),
            images=self.dataset.image_ids[self._seen],
        )


_NOTHING = Detections.merge([])
