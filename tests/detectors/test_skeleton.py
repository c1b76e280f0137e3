"""Detectors without memory have the shapes of others, and nothing waits for torch's compiler."""

from __future__ import annotations

import pytest
import torch

from detectors.base import Detector
from detectors.registry import variant_config
from detectors.skeleton import meta_detector, skeleton
from tests.support.own_process import python

VARIANTS = (
    "ssd300_mobilenet_v2",
    "ssd512_vgg16",
    "m2det320_vgg16",
    "retinanet_spinenet49s",
    "faster_rcnn_mindspore",
    "faster_rcnn_torchvision",
)

#: Training and detecting with every family, in a process of its own.
WITHOUT_COMPILER = """
import sys
import torch
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.registry import DETECTORS
from detectors.skeleton import skeleton
from orchestrator.accelerators import Accelerator
from orchestrator.config.schema import AdamWOptimizer, SGDOptimizer, TrainConfig
from tests.detectors.small_detectors import CLASSES, build, variants
from tests.support.one_step import batch_of, stepper_for

for number, case in enumerate(variants()):
    if case.marks:
        continue
    fields = case.values[0]
    skeleton(DETECTORS[fields["name"]][0].model_validate(fields), num_classes=CLASSES)
    model = build(fields).train()
    height, width = model.input_size
    kind = SGDOptimizer if number % 2 else AdamWOptimizer
    optimizer = kind(name="sgd" if number % 2 else "adamw", lr=1e-3)
    config = TrainConfig(epochs=1, batch_size=4, optimizer=optimizer)
    stepper = stepper_for(model, config, Accelerator("cpu"))
    batch = batch_of(0, side=height)
    batch.boxes[..., 2:] = batch.boxes[..., :2] + 8
    stepper.read(stepper.begin(batch, learning_rate=1e-3, stop=False))
    stepper.optimizer.load_state_dict(stepper.optimizer.state_dict())
    with torch.no_grad():
        raw = model.eval()(torch.zeros(1, 3, height, width, dtype=torch.uint8))
        postprocess(model.decode(raw), PostprocessConfig())
    assert "torch._dynamo" not in sys.modules, fields
"""


def shapes(model: Detector) -> list[tuple[str, torch.Size, torch.dtype, bool]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, one.shape, one.dtype, one.requires_grad) for name, one in tensors]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_skeleton_has_the_shapes_of_the_detector(variant: str) -> None:
    config = variant_config(variant)
    found = skeleton(config, num_classes=7)
    expected = meta_detector(config, num_classes=7)
    assert shapes(found) == shapes(expected)
    assert list(found.state_dict()) == list(expected.state_dict())


def test_what_is_large_takes_no_memory() -> None:
    model = skeleton(variant_config("m2det512_vgg16"), num_classes=80)
    there = sum(p.numel() * p.element_size() for p in model.parameters() if not p.is_meta)
    assert there < 1 << 20


def test_a_constructor_that_computes_with_weights_is_helped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Folded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.scale = torch.nn.Parameter(self.conv.weight.sum((1, 2, 3)) * torch.ones(4))

    monkeypatch.setattr("detectors.skeleton.build_detector", lambda *_, **__: Folded())
    model = skeleton(variant_config("ssd300_mobilenet_v2"), num_classes=7)
    assert [parameter.is_meta for parameter in model.parameters()] == [True, True, True]


def test_training_and_detecting_import_no_compiler() -> None:
    """That takes 2 s of every process of every start."""
    done = python("-c", WITHOUT_COMPILER)
    assert done.returncode == 0, done.stderr
