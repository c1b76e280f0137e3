"""Every variant of every registered detector, small enough for tests."""

from __future__ import annotations

import math
import os
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from detectors.base import Detector
from detectors.boxes import pairwise_iou
from detectors.m2det import config as m2det
from detectors.registry import DETECTORS, build_detector
from detectors.retinanet import config as retinanet
from detectors.single_shot import DenseDetector
from detectors.structures import Candidates, Targets

_FASTER_RCNN = {
    "input_size": (96, 96),
    "width": 0.125,
    "norm": "batch",
    "frozen_parts": 0,
    # All anchors and proposals are drawn: a level of few cells would be left out otherwise, and
    # compiled kernels have random numbers of their own.
    "rpn": {
        "assignment": {"samples": 2000},
        "cross_border": True,
        "before_train": 100,
        "before_test": 100,
        "after_train": 60,
        "after_test": 60,
    },
    "head": {"assignment": {"samples": 200, "positive_fraction": 1.0}},
}

#: What makes a variant cheap.
SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn_mindspore": _FASTER_RCNN,
    "faster_rcnn_torchvision": _FASTER_RCNN,
    "ssd300_mobilenet_v2": {"width": 0.25},
    "ssd300_vgg16": {"width": 0.125},
    "ssd512_vgg16": {"width": 0.0625},
    # Anchors small enough for every map to find a box, though the coarser ones' reach beyond the
    # input; and residual units that let a gradient through from the first step on.
    **{
        variant: {
            "width": 0.0625,
            "input_size": (256, 256),
            "anchors": {"base": 2.0},
            "loss": {"border": "learn"},
            "zero_init": False,
        }
        for variant in get_args(retinanet.Variant)
    },
    **{variant: {"width": 0.0625, "levels": 2} for variant in get_args(m2det.Variant)},
}

#: Left to the slow lane: the same networks at a larger size, deeper or wider.
SLOW = (frozenset(get_args(retinanet.Variant)) - {"retinanet_spinenet49s"}) | (
    frozenset(get_args(m2det.Variant)) - {"m2det320_vgg16"}
)

CLASSES = 3

#: Initial weights from which detectors are to learn; more than one seed shows with what margin
#: the tests of learning hold.
SEEDS = range(int(os.environ.get("ORCHESTRATOR_LEARNING_SEEDS", "1")))


def variants(*, slow: frozenset[str] = SLOW) -> list[Any]:
    cases = []
    for name, (config_class, _) in DETECTORS.items():
        field = config_class.model_fields.get("variant")
        for variant in get_args(field.annotation) if field else [None]:
            case = variant or name
            fields = {"name": name, **SMALL.get(case, {})}
            if variant is not None:
                fields["variant"] = variant
            marks = [pytest.mark.slow] if case in slow else []
            cases.append(pytest.param(fields, id=case, marks=marks))
    return cases


def build(fields: dict[str, Any], *, num_classes: int = CLASSES, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    config = DETECTORS[fields["name"]][0].model_validate(fields)
    return build_detector(config, num_classes=num_classes)


def losses_of(model: Detector, images: Tensor, targets: Targets) -> dict[str, Tensor]:
    """Named losses, drawn as a training step draws them: the generator seeded beforehand."""
    torch.manual_seed(4)
    return model.loss(images, targets)


def losses_of_raw(
    model: DenseDetector, raw: dict[str, Tensor], targets: Targets
) -> dict[str, Tensor]:
    """Named losses that raw outputs of a whole batch have."""
    return {name: term.over(term.divisor) for name, term in model.terms_of(raw, targets).items()}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def detection(candidates: Candidates, image: int, prior: int) -> tuple[Tensor, Tensor]:
    """Box, as (1, 4), and label of a candidate, by its best class."""
    label = candidates.scores[image, prior].argmax()
    boxes = candidates.boxes[image, prior].view(-1, 4)
    return boxes[label if len(boxes) > 1 else 0, None], label


def learn(
    model: Detector, images: Tensor, targets: Targets, *, rate: float, steps: int
) -> list[float]:
    """Take AdamW steps on one batch; the loss before each.

    The rate rises for four steps and then falls along half a cosine to a twentieth: at a constant
    one the last steps may be jumps, and where those lead to differs from processor to processor.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    history = []
    for step in range(steps):
        rest = max(0, step - 4) / (steps - 4)
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * rest))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 4) * fall
        loss = total(losses_of(model, images, targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        history.append(loss.item())
    return history


def hits(
    model: Detector, images: Tensor, targets: Targets, *, best: int, overlap: float
) -> list[int]:
    """For each image, how many of its ``best`` candidates lie on a box and name its class.

    A candidate lies on a box at an IoU above ``overlap``.
    """
    with torch.no_grad():
        candidates = model.decode(model(images))
    counts = []
    for image in range(len(images)):
        count = 0
        for prior in candidates.scores[image].amax(-1).topk(best).indices.tolist():
            box, label = detection(candidates, image, prior)
            ious = pairwise_iou(targets.boxes[image], box)
            slot = int(ious.argmax())
            count += int(ious[slot] > overlap and label == targets.labels[image, slot])
        counts.append(count)
    return counts
