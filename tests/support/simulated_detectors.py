"""Data sets and detectors by chance, whose true difference in quality is what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.detections import Detections


@dataclass(frozen=True)
class Skill:
    """What a detector can do.

    Attributes:
        recall: part of the boxes it finds.
        shake: deviation of its edges, in parts of the box's side.
        false_positives: mean number in an image.
    """

    recall: float = 0.85
    shake: float = 0.06
    false_positives: float = 2.0


def make_truth(rng: np.random.Generator, *, images: int, classes: int = 2) -> Dataset:
    """One to nine boxes in every image of 640 x 480 pixels, the last class three times as rare."""
    counts = rng.integers(1, 10, images)
    boxes = int(counts.sum())
    sides = rng.uniform(20, 160, (boxes, 2))
    corners = rng.uniform(0, 1, (boxes, 2)) * (np.array([640, 480]) - sides)
    shares = np.append(np.full(classes - 1, 3.0), 1.0) if classes > 1 else np.ones(1)
    return Dataset(
        label_map=LabelMap(
            ids=tuple(range(1, classes + 1)), names=tuple(f"class {i}" for i in range(classes))
        ),
        root="/nowhere",
        files=tuple(f"{i}.jpg" for i in range(images)),
        image_ids=np.arange(1, images + 1),
        widths=np.full(images, 640, np.int32),
        heights=np.full(images, 480, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes_xywh=np.concatenate([corners, sides], axis=1),
        labels=rng.choice(classes, boxes, p=shares / shares.sum()),
        areas=sides.prod(axis=1),
        crowd=np.zeros(boxes, np.bool_),
    )


def detect(rng: np.random.Generator, dataset: Dataset, skill: Skill) -> Detections:
    """True and false positives; detectors tend to miss the same boxes."""
    images, boxes = len(dataset), len(dataset.labels)
    shared = np.random.default_rng(int(dataset.areas.sum())).normal(0, np.sqrt(0.7), boxes)
    hit = shared + rng.normal(0, np.sqrt(0.3), boxes) < NormalDist().inv_cdf(skill.recall)
    image = np.repeat(np.arange(images), np.diff(dataset.offsets))
    xywh = dataset.boxes_xywh[hit]
    sides = np.tile(xywh[:, 2:], (1, 2))
    found = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    found = found + rng.normal(0, skill.shake, found.shape) * sides
    false = np.repeat(np.arange(images), rng.poisson(skill.false_positives, images))
    low = rng.uniform(0, 400, (len(false), 2))
    others = np.concatenate([low, low + rng.uniform(20, 160, (len(false), 2))], axis=1)
    margins = np.concatenate([rng.normal(1.2, 1, hit.sum()), rng.normal(-0.8, 1, len(false))])
    boxes = np.concatenate([found, others])
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = rng.integers(0, len(dataset.label_map), len(false))
    return Detections(
        images=dataset.image_ids,
        image_ids=dataset.image_ids[np.concatenate([image[hit], false])],
        labels=np.concatenate([dataset.labels[hit], labels]),
        boxes=boxes.astype(np.float32),
        scores=(1 / (1 + np.exp(-margins))).astype(np.float32),
    )
