"""COCO matching and accumulation by pycocotools, for machines without compiled kernels.

What pycocotools treats in a way of its own is kept from it: images and classes are numbered by the
caller, annotations and detections from 1, because a match with id 0 counts as a miss there.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import native


def curves_by_pycocotools(
    truth: native.Annotations,
    detections: native.Detections,
    *,
    classes: int,
    ranges: Sequence[tuple[float, float]],
) -> native.Curves:
    """What :class:`~orchestrator.evaluation.coco_matching.CocoMatcher` gives, to the bit.

    Args:
        truth: annotated boxes.
        detections: all detections.
        classes: how many there are.
        ranges: lowest and highest measure of the boxes that count together.
    """
    images = len(truth.offsets) - 1
    of_box = np.repeat(np.arange(images), np.diff(truth.offsets))
    annotated = _entries(of_box, truth, "iscrowd", truth.crowd.astype(np.int64))
    detected = _entries(detections.images, detections, "score", detections.scores)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(images, classes, annotated), _coco(images, classes, detected), "bbox"
        )
        evaluation.params.areaRng = [list(limits) for limits in ranges]
        evaluation.params.areaRngLbl = [str(number) for number in range(len(ranges))]
        evaluation.evaluate()
        evaluation.accumulate()
    return native.Curves(
        precision=np.asarray(evaluation.eval["precision"], np.float64)[..., -1],
        scores=np.asarray(evaluation.eval["scores"], np.float64)[:, :, :, 0, -1],
        recall=np.asarray(evaluation.eval["recall"], np.float64),
    )


def _coco(images: int, classes: int, annotations: Iterator[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1} for i in range(images)],
        "categories": [{"id": i + 1} for i in range(classes)],
        "annotations": list(annotations),
    }
    coco.createIndex()
    return coco


def _entries(
    images: NDArray[np.int64],
    boxes: native.Annotations | native.Detections,
    key: str,
    values: NDArray[Any],
) -> Iterator[dict[str, Any]]:
    """COCO entries with one more ``key``; the measure of a box stands in the place of its area."""
    columns = (images, boxes.labels, boxes.boxes, boxes.measures, values)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, (image, label, box, measure, value) in enumerate(rows, start=1):
        yield {
            "id": number,
            "image_id": image + 1,
            "category_id": label + 1,
            "bbox": box,
            "area": measure,
            "iscrowd": 0,
            key: value,
        }
