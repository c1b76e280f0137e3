"""The objective of a step does not depend on how its batch is cut or spread over ranks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import native
from detectors.base import Detector
from detectors.registry import build_detector, variant_config
from detectors.structures import Targets
from orchestrator.accelerators import Accelerator
from orchestrator.config.schema import SGDOptimizer, TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.training.stepper import Stepper
from tests.detectors.small_detectors import SMALL
from tests.support import one_step
from tests.support.ranks import run_ranks

CPU = Accelerator("cpu")
IMAGES = 8
#: Boxes of each image: many and few together, none and all that fit among them.
COUNTS = (1, 1, 1, 100, 30, 30, 30, 0)

#: Fewer examples than there are to draw from in some images, and not enough in others; and images
#: that leave out convolutions by lot.
_DRAWN = {
    "rpn": {"assignment": {"samples": 64}, "after_train": 40, "after_test": 40},
    "head": {"assignment": {"samples": 48, "positive_fraction": 0.5}},
}
CASES: dict[str, dict[str, Any]] = {
    "ssd300_mobilenet_v2": SMALL["ssd300_mobilenet_v2"],
    "ssd300_vgg16": SMALL["ssd300_vgg16"],
    "retinanet_spinenet49s": {**SMALL["retinanet_spinenet49s"], "stochastic_depth": 0.5},
    "m2det512_vgg16": SMALL["m2det512_vgg16"],
    "faster_rcnn_mindspore": {**SMALL["faster_rcnn_mindspore"], **_DRAWN},
    "faster_rcnn_torchvision": {**SMALL["faster_rcnn_torchvision"], **_DRAWN},
    "tiny_fcos": {},
}


def keep_doubles(patch: pytest.MonkeyPatch) -> None:
    """Let networks compute in float64 throughout; kernels still get their float32."""
    to_float, match, suppress = torch.Tensor.float, native.match_priors, native.nms_batch

    def float_(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else to_float(tensor)

    def single(array: Any) -> Any:
        return array.astype(np.float32) if array.dtype == np.float64 else array

    def match_single(boxes: Any, valid: Any, priors: Any, **rest: Any) -> Any:
        return match(single(boxes), valid, single(priors), **rest)

    def suppress_single(boxes: Any, *rest: Any, **options: Any) -> Any:
        return suppress(single(boxes), *rest, **options)

    patch.setattr(torch.Tensor, "float", float_)
    patch.setattr(native, "match_priors", match_single)
    patch.setattr(native, "nms_batch", suppress_single)


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_doubles(monkeypatch)


def frozen(variant: str) -> Detector:
    """A detector in float64 that trains, but for its batch statistics."""
    torch.manual_seed(0)
    model = build_detector(variant_config(variant, **CASES[variant]), num_classes=3)
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def batch_for(model: Detector) -> Batch:
    rng = np.random.default_rng(3)
    height, width = model.input_size
    slots = max(COUNTS)
    low = rng.uniform(0, 0.7, (IMAGES, slots, 2))
    high = low + rng.uniform(0.02, 0.3, low.shape)
    valid = np.arange(slots) < np.array(COUNTS)[:, None]
    boxes = np.concatenate([low, high], axis=-1) * [width, height, width, height]
    return Batch(
        step=5,
        images=rng.integers(0, 256, (IMAGES, height, width, 3), dtype=np.uint8),
        boxes=(boxes * valid[..., None]).astype(np.float32),
        labels=rng.integers(0, 3, (IMAGES, slots)) * valid,
        valid=valid,
        sample_ids=np.arange(IMAGES),
        image_ids=np.arange(IMAGES),
        sizes=np.tile([height, width], (IMAGES, 1)).astype(np.int32),
        transforms=np.tile([1.0, 1.0, 0.0, 0.0], (IMAGES, 1)),
    )


def share(batch: Batch, rank: int, world: int) -> Batch:
    rows = slice(rank * len(batch) // world, (rank + 1) * len(batch) // world)
    names = {field.name for field in dataclasses.fields(Batch)} - {"step", "replaced"}
    return dataclasses.replace(batch, **{name: getattr(batch, name)[rows] for name in names})


def stepper_for(model: Detector, *, rank: int | None = None, **changes: Any) -> Stepper:
    config = TrainConfig(
        epochs=1, batch_size=IMAGES, optimizer=SGDOptimizer(lr=0.1, momentum=0.0), **changes
    )
    return one_step.stepper_for(model, config, CPU, rank=rank)


def gradient_of(stepper: Stepper, batch: Batch, **how: Any) -> tuple[Tensor, dict[str, float]]:
    """Gradient of all parameters and named losses, after a backward pass over all pieces."""
    pieces = stepper.backward(batch, **how)
    stepper.reduce()
    losses = {name: sum(piece[name].item() for piece in pieces) for name in pieces[0]}
    return torch.cat([flat.clone() for flat in stepper.gradients.flats]), losses


def assert_same(
    found: tuple[Tensor, dict[str, float]], whole: tuple[Tensor, dict[str, float]]
) -> None:
    assert whole[0].norm() > 0
    assert (found[0] - whole[0]).norm() / whole[0].norm() <= 1e-12
    assert found[1] == pytest.approx(whole[1], rel=1e-12)


#: Left to the slow lane: the same rules on larger networks.
SLOW = {"ssd300_mobilenet_v2", "m2det512_vgg16"}


@pytest.fixture(
    params=[pytest.param(case, marks=[pytest.mark.slow] if case in SLOW else []) for case in CASES]
)
def whole(
    request: pytest.FixtureRequest, doubles: None
) -> tuple[str, tuple[Tensor, dict[str, float]]]:
    """The variant, and gradient and losses of its batch in one piece."""
    model = frozen(request.param)
    return request.param, gradient_of(stepper_for(model), batch_for(model))


def test_pieces_and_ranks_give_the_gradient_of_the_whole(whole: Any) -> None:
    variant, expected = whole
    for cut in ({"accumulate": 8}, {"virtual_shards": 4}):
        model = frozen(variant)
        assert_same(gradient_of(stepper_for(model, **cut), batch_for(model)), expected)
    # Ranks one after the other, as a replay has them, with two pieces each.
    model = frozen(variant)
    batches = [share(batch_for(model), rank, 4) for rank in range(4)]
    steppers = [stepper_for(frozen(variant), rank=rank, accumulate=2) for rank in range(4)]
    ranks = list(zip(steppers, batches, strict=True))
    parts = [part for stepper, batch in ranks for part in stepper.divisors(batch)]
    divisors = steppers[0].add_up(parts)
    found = [gradient_of(stepper, batch, divisors=divisors) for stepper, batch in ranks]
    gradient = torch.stack([part for part, _ in found]).sum(0)
    losses = {name: sum(named[name] for _, named in found) for name in found[0][1]}
    assert_same((gradient, losses), expected)


def test_the_whole_is_what_a_detector_calls_its_loss(doubles: None) -> None:
    model = frozen("tiny_fcos")
    batch = batch_for(model)
    gradient, losses = gradient_of(stepper_for(model, accumulate=4), batch)
    plain = frozen("tiny_fcos")
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    targets = Targets(*map(torch.from_numpy, (batch.boxes, batch.labels, batch.valid)))
    named = plain.loss(images, targets)
    torch.stack(list(named.values())).sum().backward()
    assert losses == pytest.approx({name: value.item() for name, value in named.items()}, rel=1e-12)
    own = torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm()
    assert gradient.norm().item() == pytest.approx(own.item(), rel=1e-12)


def _rank(rank: int, folder: Path, variant: str) -> None:
    patch = pytest.MonkeyPatch()
    keep_doubles(patch)
    for accumulate in (1, 2):
        model = frozen(variant)
        stepper = stepper_for(model, accumulate=accumulate)
        found = gradient_of(stepper, share(batch_for(model), rank, 2))
        torch.save(found, folder / f"{accumulate}-{rank}.pt")
    patch.undo()


def test_two_processes_give_the_gradient_of_one(tmp_path: Path, doubles: None) -> None:
    variant = "faster_rcnn_torchvision"
    model = frozen(variant)
    expected = gradient_of(stepper_for(model), batch_for(model))
    run_ranks(_rank, tmp_path, variant, count=2)
    for accumulate in (1, 2):
        ranks = [torch.load(tmp_path / f"{accumulate}-{rank}.pt") for rank in range(2)]
        losses = {name: sum(named[name] for _, named in ranks) for name in expected[1]}
        for gradient, _ in ranks:
            assert_same((gradient, losses), expected)
