"""Weights of classes scale the classification loss of their examples, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from detectors.config import FocalLossConfig, MultiBoxLossConfig
from detectors.losses import sigmoid_focal
from detectors.objectives import FocalObjective, MultiBoxObjective
from detectors.registry import build_detector, variant_config
from detectors.structures import Targets

SMALL = {
    "ssd300_mobilenet_v2": {"width": 0.1},
    "ssd300_vgg16": {"width": 0.1},
    "retinanet_spinenet49s": {"width": 0.25, "input_size": [128, 128]},
}


def test_multibox_weighs_as_torch_does() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 40, 4), torch.randint(0, 4, (2, 40))
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    objective = MultiBoxObjective(MultiBoxLossConfig(negative_ratio=100.0))
    # With that many negatives all are taken.
    found = objective.classification(logits, labels, weights[labels])
    wanted = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), weight=weights, reduction="sum"
    )
    torch.testing.assert_close(found, wanted)


def test_focal_weighs_all_channels_of_an_example() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 40, 4), torch.randint(0, 4, (2, 40))
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    found = FocalObjective(FocalLossConfig()).classification(logits, labels, weights[labels])
    each = sigmoid_focal(logits, labels, alpha=0.75, gamma=2.0).sum(-1)
    wanted = sum(weights[k] * each[labels == k].sum() for k in range(4))
    torch.testing.assert_close(found, wanted)


def losses(variant: str, weights: list[float] | None, label: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    config = variant_config(variant, class_weights=weights, **SMALL[variant])
    model = build_detector(config, num_classes=3)
    size = model.input_size
    images = torch.randint(0, 255, (2, 3, *size), dtype=torch.uint8)
    scale = size[0] / 10
    boxes = torch.tensor([[[1, 1, 5, 5], [4, 3, 9, 9]]] * 2) * scale
    labels, valid = torch.full((2, 2), label), torch.ones(2, 2, dtype=torch.bool)
    targets = Targets(boxes=boxes.float(), labels=labels, valid=valid)
    return model.eval().loss(images, targets)


@pytest.mark.parametrize("variant", SMALL)
def test_only_the_weight_of_the_class_there_matters(variant: str) -> None:
    none = losses(variant, None, 1)
    ones = losses(variant, [1.0, 1.0, 1.0], 1)
    others = losses(variant, [5.0, 1.0, 7.0], 1)
    doubled = losses(variant, [1.0, 2.0, 1.0], 1)
    tripled = losses(variant, [1.0, 3.0, 1.0], 1)
    torch.testing.assert_close(none, ones)
    torch.testing.assert_close(ones, others)
    rise = doubled["cls"] - ones["cls"]
    assert rise > 0
    torch.testing.assert_close(tripled["cls"] - ones["cls"], 2 * rise, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(doubled["loc"], ones["loc"])


def test_weights_are_no_part_of_the_state() -> None:
    config = variant_config("ssd300_mobilenet_v2", width=0.1, class_weights=[1.0, 2.0])
    model = build_detector(config, num_classes=2)
    assert not any("class_weights" in name for name in model.state_dict())


def test_weights_that_do_not_fit_are_refused() -> None:
    config = variant_config("ssd300_mobilenet_v2", width=0.1, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="has 2 values, but there are 3 classes"):
        build_detector(config, num_classes=3)
