"""A detector for a data set and a machine: the cheapest whose priors fit the boxes.

The recipes are those of `experiments/`, where each says what it was tried on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Literal

import numpy as np

from detectors.registry import DETECTORS, build_detector
from orchestrator.config.schema import NoAugmentation, ResizePadAugmentation
from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.boxes import prior_recall
from orchestrator.data.doctor.examine import view_of

Kind = Literal["cpu", "gpu", "npu"]

#: Share of the boxes that must have a prior to learn them, for a detector to be taken at once.
_GOOD_RECALL = 0.9
#: Samples to learn from altogether: BCCD's 130 epochs of 205 images on a CPU, and less where
#: weights have seen other images before.
_SAMPLES = {"drawn": 26_000, "weights": 12_000}
_MOST_EPOCHS, _FEWEST_EPOCHS = 300, 12
_EVALUATIONS = 10
#: Long sides that two-stage detectors are tried at.
_LONG_SIDES = {"cpu": (320, 512), "gpu": (640, 800, 1024, 1344), "npu": (640, 800, 1024, 1344)}


@dataclass(frozen=True)
class Recipe:
    """A detector and how it is trained.

    Attributes:
        detector: section of an experiment.
        augmentation: ``data.augmentation``.
        batch_size: images of a step, if there are enough.
        optimizer: ``train.optimizer``.
        clip_norm: ``train.clip_norm``.
        weights: published weights to begin with; None where there are none of this form.
        why: comment on the detector.
        with_weights: what to do to begin with them where they could not be had.
    """

    detector: Mapping[str, Any]
    augmentation: Mapping[str, Any]
    batch_size: int
    optimizer: Mapping[str, Any]
    weights: str | None
    why: str
    clip_norm: float | None = None
    with_weights: str = "remove the # from the next line"


@dataclass(frozen=True)
class Choice:
    """What to train.

    Attributes:
        recipe: the detector and the like.
        recall: share of the training boxes with a prior of IoU 0.5 or more; None without priors.
        batch_size: as many as there are images for.
        epochs: passes over the training images.
        evaluate_every: epochs between evaluations.
        steps: in all.
    """

    recipe: Recipe
    recall: float | None
    batch_size: int
    epochs: int
    evaluate_every: int
    steps: int


def choose(train: Dataset, kind: Kind, *, weights: bool) -> Choice:
    """Detector, batch size and epochs for these images.

    Args:
        train: images to learn from, at least one of them with a box.
        kind: of the devices that train.
        weights: whether published weights can be had.
    """
    tried: list[tuple[float, Recipe, float | None]] = []
    for recipe in _recipes(train, kind, weights=weights):
        recall = _recall(train, recipe)
        tried.append((1.0 if recall is None else recall, recipe, recall))
        if tried[-1][0] >= _GOOD_RECALL:
            break
    # Of equals the cheaper one, which comes first.
    _, recipe, recall = max(tried, key=lambda one: one[0])
    images = int((np.diff(train.offsets) > 0).sum())
    batch = recipe.batch_size
    while batch > 2 and batch > images // 2:
        batch //= 2
    batch = min(batch, images)
    begun = "weights" if weights and recipe.weights else "drawn"
    epochs = min(_MOST_EPOCHS, max(_FEWEST_EPOCHS, ceil(_SAMPLES[begun] / images)))
    every = ceil(epochs / _EVALUATIONS)
    # The last evaluation is at the end, and so are the others' distances equal.
    epochs = every * ceil(epochs / every)
    return Choice(recipe, recall, batch, epochs, every, epochs * (images // batch))


def _recipes(train: Dataset, kind: Kind, *, weights: bool) -> Iterator[Recipe]:
    """Cheapest first."""
    yield from _small_ssd(weights=weights) if kind == "cpu" else _large_ssd()
    for long_side in _LONG_SIDES[kind]:
        yield _faster_rcnn(train, kind, long_side)


def _small_ssd(*, weights: bool) -> Iterator[Recipe]:
    detector = {
        "name": "ssd",
        "variant": "ssd300_mobilenet_v2",
        "width": 1.0 if weights else 0.35,
        "bn_momentum": 0.1,
        # The head is drawn anew in any case; without it the first steps learn what background is.
        "loss": {"prior_score": 0.01},
        "postprocess": {"score_threshold": 0.02, "iou_threshold": 0.5, "plus_one": False},
    }
    adamw = {"name": "adamw", "lr": 1e-3 if weights else 2e-3, "weight_decay": 0.05}
    yield Recipe(
        detector,
        {"name": "ssd"},
        8,
        adamw,
        "torchvision:mobilenet_v2",
        "one stage, small enough for a CPU",
        with_weights="set detector.width to 1.0 and remove the # from the next line",
    )


def _large_ssd() -> Iterator[Recipe]:
    sgd = {"name": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}
    for variant, weights, batch in (
        ("ssd300_vgg16", "torchvision:ssd300_vgg16", 32),
        ("ssd512_vgg16", "torchvision:vgg16", 16),
    ):
        detector = {"name": "ssd", "variant": variant, "priors": "coco"}
        yield Recipe(detector, {"name": "ssd"}, batch, sgd, weights, "one stage, fast", 10.0)


def _faster_rcnn(train: Dataset, kind: Kind, long_side: int) -> Recipe:
    heights, widths = (np.median(sides) for sides in (train.heights, train.widths))
    scale = long_side / max(heights, widths)
    size = [int(max(64, 32 * ceil(side * scale / 32))) for side in (heights, widths)]
    detector: dict[str, Any] = {
        "name": "faster_rcnn",
        "variant": "faster_rcnn_torchvision",
        "input_size": size,
    }
    augmentation = {
        "name": "resize_pad",
        "legacy_boxes": False,
        "fill": [124, 116, 104],
        "expand_probability": 0.3,
        "expand_ratio": 1.5,
    }
    why = "two stages, for boxes that one stage has no priors for"
    if kind != "cpu":
        detector["bn_eps"] = 0.0
        sgd = {"name": "sgd", "lr": 5e-3, "momentum": 0.9, "weight_decay": 1e-4}
        weights = "torchvision:fasterrcnn_resnet50_fpn"
        return Recipe(detector, augmentation, 4, sgd, weights, why, 10.0)
    detector |= {
        "width": 0.25,
        "norm": "batch",
        "frozen_parts": 0,
        "rpn": {
            "assignment": {"samples": 128},
            "before_train": 300,
            "before_test": 300,
            "after_train": 200,
            "after_test": 200,
        },
        "head": {"assignment": {"samples": 64, "positive_fraction": 0.5}},
        "postprocess": {"score_threshold": 0.02},
    }
    adamw = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05}
    return Recipe(detector, augmentation, 8, adamw, None, why, 10.0)


def _recall(train: Dataset, recipe: Recipe) -> float | None:
    """Share of the boxes that a prior overlaps enough to learn from; None without priors."""
    config = DETECTORS[recipe.detector["name"]][0].model_validate(dict(recipe.detector))
    detector = build_detector(config, num_classes=1)
    boxes = detector.prior_boxes()
    if boxes is None:
        return None
    resized = (
        ResizePadAugmentation(legacy_boxes=False)
        if recipe.augmentation["name"] == "resize_pad"
        else NoAugmentation()
    )
    found = prior_recall(train, boxes.numpy(), view_of(resized, detector.input_size))
    return found["all"]["recall"] if found else None


def typical_side(data: Dataset) -> tuple[float, float]:
    """Median side of an image, and of a box, in pixels: the square root of the area."""
    images = np.sqrt(data.widths.astype(np.float64) * data.heights)
    boxes = data.boxes_xywh[~data.crowd, 2:].prod(axis=1)
    return float(np.median(images)), sqrt(float(np.median(boxes))) if len(boxes) else 0.0
