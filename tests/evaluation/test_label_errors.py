"""Boxes that a detector contradicts: each kind is named, what is right is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.label_errors import Suspect, find_suspects

IMAGES, ACROSS = 60, 6


def world(seed: int = 1) -> tuple[Dataset, Detections]:
    """36 boxes an image on a grid, and a detector that finds nearly all of them."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(ACROSS), np.arange(ACROSS)), -1).reshape(-1, 2) * 100.0
    per_image = len(grid)
    xywh = np.tile(np.concatenate([grid + 20, np.full((per_image, 2), 50.0)], 1), (IMAGES, 1))
    labels = rng.integers(0, 3, len(xywh))
    data = Dataset(
        label_map=LabelMap(("a", "b", "c"), (1, 2, 3)),
        root="/nowhere",
        files=[f"{i}.jpg" for i in range(IMAGES)],
        image_ids=np.arange(IMAGES) + 500,
        widths=np.full(IMAGES, 600, np.int32),
        heights=np.full(IMAGES, 600, np.int32),
        offsets=np.arange(IMAGES + 1) * per_image,
        boxes_xywh=xywh,
        labels=labels,
        areas=np.full(len(xywh), 2500.0),
        crowd=np.zeros(len(xywh), bool),
    )
    # Misses 0.3 % of the boxes of a and b and half of those of c; invents some with low scores.
    finds = rng.uniform(size=len(xywh)) < np.where(labels == 2, 0.5, 0.997)
    boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    boxes = boxes[finds] + rng.uniform(-3, 3, (finds.sum(), 4))
    invented = rng.uniform(0, 500, (300, 2))
    detections = Detections(
        images=data.image_ids,
        image_ids=np.concatenate(
            [data.image_ids.repeat(per_image)[finds], rng.choice(data.image_ids, 300)]
        ),
        labels=np.concatenate([labels[finds], rng.integers(0, 3, 300)]),
        boxes=np.concatenate([boxes, np.concatenate([invented, invented + 40], 1)]).astype(
            np.float32
        ),
        scores=np.concatenate(
            [rng.uniform(0.5, 0.95, finds.sum()), rng.uniform(0.02, 0.3, 300)]
        ).astype(np.float32),
    )
    return data, detections


def spoilt(data: Dataset) -> tuple[Dataset, dict[str, set[int]], set[tuple]]:
    """Ten boxes of class a or b spoilt in each way: rows of the new set, places of the missed."""
    rng = np.random.default_rng(7)
    rows = rng.choice(np.flatnonzero(data.labels < 2), 40, replace=False).reshape(4, 10)
    xywh, labels = data.boxes_xywh.copy(), data.labels.copy()
    labels[rows[0]] = (labels[rows[0]] + 1) % 2
    xywh[rows[1], 0] += 33.0
    image = np.arange(IMAGES).repeat(ACROSS**2)
    # Between four boxes there is room for one that is none.
    extra = xywh[rows[2]] + (48.0, 48.0, -10.0, -10.0)
    gone = np.zeros(len(xywh), bool)
    gone[rows[3]] = True
    missed = {(int(image[r]), *xywh[r, :2].tolist()) for r in rows[3].tolist()}
    keep = np.flatnonzero(~gone)
    images = np.concatenate([image[keep], image[rows[2]]])
    order = np.argsort(images, kind="stable")
    position = np.argsort(order)
    where = {int(row): int(position[i]) for i, row in enumerate(keep.tolist())}
    fresh = replace(
        data,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(images, minlength=IMAGES))]),
        boxes_xywh=np.concatenate([xywh[keep], extra])[order],
        labels=np.concatenate([labels[keep], labels[rows[2]]])[order],
        areas=np.full(len(order), 2500.0),
        crowd=np.zeros(len(order), bool),
    )
    answers = {
        "wrong_class": {where[r] for r in rows[0].tolist()},
        "wrong_place": {where[r] for r in rows[1].tolist()},
        "spurious": {int(position[len(keep) + i]) for i in range(10)},
    }
    return fresh, answers, missed


def test_each_kind_is_named() -> None:
    clean, detections = world()
    data, answers, missed = spoilt(clean)
    suspects = find_suspects(data, detections)
    assert all(0 <= one.suspicion <= 1 for one in suspects)
    first = suspects[:38]
    right = Counter(one.kind for one in first if is_right(one, answers, missed))
    # What the detector never found looks like what is spurious.
    assert sum(right.values()) >= 34
    assert min(right[kind] for kind in ("wrong_class", "wrong_place", "spurious", "missed")) >= 7


def is_right(one: Suspect, answers: dict[str, set[int]], missed: set[tuple]) -> bool:
    if one.kind != "missed":
        return one.row in answers[one.kind]
    x, y = one.box[:2]
    return any(
        image == one.image and abs(x - left) < 10 and abs(y - top) < 10
        for image, left, top in missed
    )


def test_sound_annotations_are_hardly_suspicious() -> None:
    data, detections = world()
    suspects = find_suspects(data, detections)
    # What the detector is bad at is not held against the boxes: c is found every other time.
    of_c = [one.suspicion for one in suspects if one.kind == "spurious" and one.label == 2]
    assert len(of_c) > 200
    assert max(of_c) < 0.6
    invented = [one.suspicion for one in suspects if one.kind == "missed"]
    assert max(invented) < 0.1


def test_crowds_hide_what_lies_in_them() -> None:
    data, detections = world()
    crowd = np.zeros(len(data.labels), bool)
    crowd[0] = True
    boxes = data.boxes_xywh.copy()
    boxes[0] = (0, 0, 600, 600)
    hidden = replace(data, crowd=crowd, boxes_xywh=boxes)
    assert all(one.image != 0 or one.kind != "missed" for one in find_suspects(hidden, detections))


@pytest.mark.parametrize("empty", ["boxes", "detections"])
def test_nothing_to_compare(empty: str) -> None:
    data, detections = world()
    if empty == "detections":
        none = replace(Detections.merge([]), images=data.image_ids)
        suspects = find_suspects(data, none)
        assert {one.kind for one in suspects} <= {"spurious"}
        assert max((one.suspicion for one in suspects), default=0.0) == pytest.approx(0.0)
        return
    bare = replace(
        data,
        offsets=np.zeros(IMAGES + 1, np.int64),
        boxes_xywh=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0),
        crowd=np.zeros(0, bool),
    )
    assert {one.kind for one in find_suspects(bare, detections)} == {"missed"}
