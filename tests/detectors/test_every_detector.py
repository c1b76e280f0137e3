"""What the contract promises, for every variant of every registered detector.

Registering is enough to be tested.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from detectors.base import Detector
from detectors.m2det import config as m2det
from detectors.retinanet import config as retinanet
from detectors.structures import Targets
from tests.detectors.small_detectors import (
    CLASSES,
    SEEDS,
    SLOW,
    SMALL,
    build,
    hits,
    learn,
    losses_of,
    total,
    variants,
)

#: Learning rate and steps in which four images are learnt, where the usual ones do not do:
#: without batch normalisation, or through many layers, it takes longer.
PATIENCE = {
    **dict.fromkeys(("faster_rcnn_mindspore", "faster_rcnn_torchvision"), (2e-3, 120)),
    "ssd300_vgg16": (1.5e-3, 75),
    "ssd512_vgg16": (1.5e-3, 110),
    **dict.fromkeys(get_args(retinanet.Variant), (1e-2, 80)),
    **dict.fromkeys(get_args(m2det.Variant), (8e-3, 90)),
}

#: Share of the first loss that may be left.
LEFT_OVER = 0.25
#: The same for detectors of other packages, whose losses may have soft targets and never reach 0.
LEFT_OVER_ELSEWHERE = 0.5

#: Left to the slow lane where the same losses, and the same layers, are learnt elsewhere already.
SLOW_TO_LEARN = SLOW | {"ssd300_vgg16", "ssd512_vgg16", "faster_rcnn_mindspore"}

#: Likewise: the exporter takes its time over two stages and over many layers.
SLOW_TO_TRACE = SLOW | {
    *("faster_rcnn_mindspore", "faster_rcnn_torchvision"),
    *("retinanet_spinenet49s", "m2det320_vgg16"),
}


@pytest.fixture(params=variants())
def fields(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def images_for(model: Detector, count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, *model.input_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def random_targets(model: Detector, counts: list[int], *, slots: int) -> Targets:
    generator = torch.Generator().manual_seed(len(counts) * 1000 + slots)
    height, width = model.input_size
    size = torch.tensor([width, height], dtype=torch.float32)
    low = torch.rand(len(counts), slots, 2, generator=generator) * size * 0.7
    high = low + (0.02 + 0.28 * torch.rand(low.shape, generator=generator)) * size
    labels = torch.randint(0, model.num_classes, (len(counts), slots), generator=generator)
    valid = torch.arange(slots) < torch.tensor(counts)[:, None]
    boxes = torch.cat([low, high], dim=-1) * valid[..., None]
    return Targets(boxes, labels * valid, valid)


def trainable(model: Detector) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_raw_outputs_and_candidates_have_fixed_shapes(fields: dict[str, Any]) -> None:
    model = build(fields).eval()
    with torch.no_grad():
        raw = model(images_for(model, 2))
        boxes, scores = model.decode(raw)
    for name, value in raw.items():
        assert value.dtype == torch.float32, name
        assert value.isfinite().all(), name
        assert len(value) == 2, name
    assert scores.shape == (2, boxes.shape[1], CLASSES)
    assert boxes.shape in ((2, scores.shape[1], 4), (2, scores.shape[1], CLASSES, 4))
    assert boxes.dtype == scores.dtype == torch.float32
    assert 0 <= scores.min() <= scores.max() <= 1
    height, width = model.input_size
    limit = torch.tensor([width, height, width, height])
    if getattr(model, "cut_boxes", True):
        assert ((boxes >= 0) & (boxes <= limit)).all()
    assert (boxes[..., 2:] >= boxes[..., :2]).all()


def test_evaluation_treats_each_image_by_itself(fields: dict[str, Any]) -> None:
    model = build(fields).eval()
    images = images_for(model, 3)
    with torch.no_grad():
        together, alone = model(images), model(images[1:2])
    for name, value in together.items():
        # Untrained networks have outputs of any size, and rounding goes by the largest of them.
        atol = max(1e-4, 1e-5 * float(value.abs().max()))
        torch.testing.assert_close(value[1:2], alone[name], rtol=1e-4, atol=atol)


def test_bytes_and_floats_are_the_same_image(fields: dict[str, Any]) -> None:
    model = build(fields).eval()
    images = images_for(model, 1)
    with torch.no_grad():
        for name, value in model(images).items():
            torch.testing.assert_close(value, model(images.float())[name], rtol=0, atol=0)


@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [100, 1]], ids=str)
def test_losses_and_gradients_are_finite(fields: dict[str, Any], counts: list[int]) -> None:
    model = build(fields).train()
    losses = losses_of(model, images_for(model, 2), random_targets(model, counts, slots=100))
    for name, value in losses.items():
        assert value.shape == (), name
        assert value.dtype == torch.float32, name
        assert value.isfinite(), name
        assert value >= 0, name
    total(losses).backward()
    for name, parameter in trainable(model).items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_every_parameter_learns(fields: dict[str, Any]) -> None:
    model = build(fields).train()
    height, width = model.input_size
    # Squares of every size, in the middle and in a corner: every feature map has one to find.
    half = torch.tensor([0.03, 0.05, 0.1, 0.175, 0.25, 0.325, 0.475])[:, None]
    boxes = torch.cat([0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half], dim=1)
    boxes = torch.cat([boxes, torch.tensor([[0.0, 0.0, 0.65, 0.65]])])
    boxes = (boxes * torch.tensor([width, height, width, height])).repeat(2, 1, 1)
    labels = torch.arange(8).remainder(CLASSES).repeat(2, 1)
    targets = Targets(boxes, labels, torch.ones(2, 8, dtype=torch.bool))
    total(losses_of(model, images_for(model, 2), targets)).backward()
    still = [
        name
        for name, parameter in trainable(model).items()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert still == []


def test_padding_changes_nothing(fields: dict[str, Any]) -> None:
    model = build(fields).train()
    images = images_for(model, 2)
    tight = random_targets(model, [4, 2], slots=4)
    garbage = Targets(
        boxes=torch.cat([tight.boxes, 10 * torch.ones(2, 3, 4)], dim=1),
        labels=torch.cat([tight.labels, torch.full((2, 3), 2)], dim=1),
        valid=torch.cat([tight.valid, torch.zeros(2, 3, dtype=torch.bool)], dim=1),
    )
    first = losses_of(model, images, tight)
    for name, value in losses_of(model, images, garbage).items():
        torch.testing.assert_close(value, first[name])


def test_no_slots_at_all_equal_empty_slots(fields: dict[str, Any]) -> None:
    model = build(fields).train()
    images = images_for(model, 2)
    empty = random_targets(model, [0, 0], slots=2)
    none = Targets(*(column[:, :0] for column in empty))
    first = losses_of(model, images, empty)
    for name, value in losses_of(model, images, none).items():
        torch.testing.assert_close(value, first[name])


@pytest.mark.parametrize("num_classes", [1, 42])
def test_any_number_of_classes(fields: dict[str, Any], num_classes: int) -> None:
    model = build(fields, num_classes=num_classes)
    assert model.num_classes == num_classes
    total(losses_of(model, images_for(model, 2), random_targets(model, [3, 2], slots=3))).backward()
    with torch.no_grad():
        scores = model.eval().decode(model(images_for(model, 1))).scores
    assert scores.shape[-1] == num_classes


def test_equal_seeds_build_equal_weights_and_state_dicts_load(fields: dict[str, Any]) -> None:
    first, second, third = build(fields), build(fields), build(fields, seed=1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert not all(
        torch.equal(value, third.state_dict()[name]) for name, value in first.state_dict().items()
    )
    third.load_state_dict(first.state_dict())
    images = images_for(first, 1)
    with torch.no_grad():
        for name, value in first.eval()(images).items():
            assert torch.equal(value, third.eval()(images)[name]), name


def pairs_of_squares(model: Detector) -> tuple[Tensor, Targets]:
    """Four grey images with two squares each, 0.25 to 0.49 of their width, in three colours."""
    height, width = model.input_size
    images = torch.full((4, 3, height, width), 60, dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    boxes, labels = torch.zeros(4, 2, 4), torch.zeros(4, 2, dtype=torch.int64)
    colours = torch.tensor([[250, 30, 30], [30, 250, 30], [30, 30, 250]], dtype=torch.uint8)
    for image in range(4):
        for slot in range(2):
            side = int(width * (0.25 + 0.08 * image))
            x, y = int(width * (0.04 + 0.44 * slot)), int(height * (0.05 + 0.1 * image))
            label = (image + slot) % CLASSES
            images[image, :, y : y + side, x : x + side] = colours[label][:, None, None]
            boxes[image, slot] = torch.tensor([x, y, x + side, y + side])
            labels[image, slot] = label
    return images, Targets(boxes, labels, torch.ones(4, 2, dtype=torch.bool))


@pytest.mark.parametrize("fields", variants(slow=SLOW_TO_LEARN))
@pytest.mark.parametrize("seed", SEEDS)
def test_four_images_can_be_learnt_by_heart(fields: dict[str, Any], seed: int) -> None:
    model = build(fields, seed=seed).train()
    images, targets = pairs_of_squares(model)
    case = fields.get("variant", fields["name"])
    rate, steps = PATIENCE.get(case, (4e-3, 50))
    history = learn(model, images, targets, rate=rate, steps=steps)
    left = LEFT_OVER if case in SMALL else LEFT_OVER_ELSEWHERE
    assert sum(history[-5:]) < left * sum(history[:5])
    assert sum(hits(model, images, targets, best=2, overlap=0.75)) >= 7


@pytest.mark.parametrize("fields", variants(slow=SLOW_TO_TRACE))
def test_decoded_network_exports_with_a_free_batch_size(fields: dict[str, Any]) -> None:
    model = build(fields).eval()

    class Decoded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(self.model.decode(self.model(images)))

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Decoded(), (images_for(model, 2),), dynamic_shapes=({0: batch},), strict=True
    )
    images = images_for(model, 3, seed=1)
    with torch.no_grad():
        want, got = model.decode(model(images)), program.module()(images)
    torch.testing.assert_close(got[0], want.boxes)
    torch.testing.assert_close(got[1], want.scores)


@pytest.mark.slow
def test_losses_compile_to_kernels(fields: dict[str, Any]) -> None:
    # Detectors share code, and each would count as one more recompilation of it.
    torch._dynamo.reset()
    model = build(fields).train()
    arguments = images_for(model, 2), random_targets(model, [5, 3], slots=6)
    found = torch.compile(model.loss, fullgraph=True)(*arguments)
    for name, value in losses_of(model, *arguments).items():
        # 101 untrained layers with statistics of two images magnify float32's rounding: of
        # m2det704_resnet101 the classification loss is 12.9923 in float64 (compiled and not), here
        # 12.9920 compiled and 13.0061 not.
        torch.testing.assert_close(found[name], value, rtol=5e-3, atol=1e-4)
