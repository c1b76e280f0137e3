"""Small data sets and detections, and pycocotools used directly on COCO trees: the oracle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.detections import Detections

Tree = dict[str, Any]


def dataset_of(tree: Tree) -> Dataset:
    """A Dataset from a COCO tree, by plain loops that share no code with the reader."""
    label_map = LabelMap.from_categories(tree["categories"])
    boxes, labels, areas, crowd, offsets = [], [], [], [], [0]
    for image in tree["images"]:
        for one in tree["annotations"]:
            if one["image_id"] == image["id"]:
                boxes.append(one["bbox"])
                labels.append(label_map.label_of_id[one["category_id"]])
                areas.append(one["area"])
                crowd.append(bool(one["iscrowd"]))
        offsets.append(len(boxes))
    images = tree["images"]
    return Dataset(
        label_map=label_map,
        root="/nowhere",
        files=tuple(image.get("file_name", f"{image['id']}.jpg") for image in images),
        image_ids=np.array([image["id"] for image in images], np.int64),
        widths=np.array([image["width"] for image in images], np.int32),
        heights=np.array([image["height"] for image in images], np.int32),
        offsets=np.array(offsets, np.int64),
        boxes_xywh=np.array(boxes, np.float64).reshape(-1, 4),
        labels=np.array(labels, np.int64),
        areas=np.array(areas, np.float64),
        crowd=np.array(crowd, np.bool_),
    )


def detections_of(
    rows: Sequence[tuple[int, int, Sequence[float], float]], images: Sequence[int]
) -> Detections:
    """Detections from (image id, label, xyxy, score) rows."""
    return Detections(
        images=np.array(images, np.int64),
        image_ids=np.array([row[0] for row in rows], np.int64),
        labels=np.array([row[1] for row in rows], np.int64),
        boxes=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[3] for row in rows], np.float32),
    )


def pycocotools_numbers(tree: Tree, entries: list[Tree]) -> list[float]:
    """The 12 numbers of a COCO tree and results entries through pycocotools' own loader."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluated(tree, entries)
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def pycocotools_at_limit(tree: Tree, entries: list[Tree], limit: int) -> list[float]:
    """AP, AP50, AP75 and AR with up to ``limit`` detections; ``summarize`` knows 100 alone."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = _evaluated(tree, entries, limit).eval
    precision, recall = found["precision"][:, :, :, 0, 0], found["recall"][:, :, 0, 0]
    values = (precision, precision[0], precision[5], recall)
    return [float(one[one > -1].mean()) if (one > -1).any() else -1.0 for one in values]


def _evaluated(tree: Tree, entries: list[Tree], *limits: int) -> COCOeval:
    truth = COCO()
    truth.dataset = tree
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(entries), "bbox")
    evaluation.params.maxDets = list(limits) or evaluation.params.maxDets
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def random_case(seed: int, *, ties: bool) -> tuple[Tree, Detections]:
    """Few images, uneven category ids, crowds, empty images, all sizes, good and bad detections.

    Annotation ids count from 1: pycocotools is no oracle otherwise.
    """
    rng = np.random.default_rng(seed)
    categories = [{"id": int(i), "name": f"class {i}"} for i in (7, 1, 30)[: rng.integers(1, 4)]]
    label_map = LabelMap.from_categories(categories)
    ids = rng.choice(1000, size=rng.integers(1, 7), replace=False).tolist()
    images = [{"id": int(i), "width": 400, "height": 300} for i in ids]
    annotations: list[Tree] = []
    rows: list[tuple[int, int, Sequence[float], float]] = []
    for image in ids:
        for _ in range(rng.integers(0, 6)):
            side = rng.choice([12.0, 50.0, 150.0])
            x, y = rng.uniform(0, 200, 2).round(1)
            w, h = (side * rng.uniform(0.5, 1.5, 2)).round(1)
            label = int(rng.integers(len(label_map)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label_map.ids[label],
                    "bbox": [float(x), float(y), float(w), float(h)],
                    "area": float(w * h * rng.uniform(0.5, 1)),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(rng.integers(0, 4)):
                shift = rng.normal(0, 0.12, 4) * side
                box = np.array([x, y, x + w, y + h]) + shift
                box[2:] = np.maximum(box[2:], box[:2])
                guess = label if rng.random() < 0.8 else int(rng.integers(len(label_map)))
                score = float(rng.uniform(0, 1))
                rows.append((image, guess, box.tolist(), round(score, 1) if ties else score))
    tree = {"images": images, "categories": categories, "annotations": annotations}
    order = rng.permutation(len(rows))
    return tree, detections_of([rows[i] for i in order], ids)
