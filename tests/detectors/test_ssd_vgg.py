from __future__ import annotations

from typing import Any

import pytest
import torch
from small_detectors import losses_of_raw
from torch import Tensor, nn
from torchvision.models.detection import ssd as torchvision_ssd
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from detectors.backbones.vgg import L2Norm
from detectors.config import PostprocessConfig
from detectors.postprocess import postprocess
from detectors.registry import build_detector
from detectors.ssd.config import SSDConfig
from detectors.ssd.vgg import SSDVGG16
from detectors.structures import Candidates, Targets

CLASSES = 7


def build(variant: str = "ssd300_vgg16", *, num_classes: int = 20, **fields: Any) -> SSDVGG16:
    config = SSDConfig.model_validate({"name": "ssd", "variant": variant, **fields})
    model = build_detector(config, num_classes=num_classes)
    assert isinstance(model, SSDVGG16)
    return model


@pytest.mark.parametrize(
    ("variant", "classes", "count", "priors"),
    [
        # Executing amdegroot/ssd.pytorch, and torchvision for 91 classes, gives these figures.
        ("ssd300_vgg16", 1, 23_745_908, 8732),
        ("ssd300_vgg16", 20, 26_285_486, 8732),
        ("ssd300_vgg16", 80, 34_305_206, 8732),
        ("ssd300_vgg16", 90, 35_641_826, 8732),
        ("ssd512_vgg16", 20, 27_188_676, 24564),
        ("ssd512_vgg16", 80, 36_038_196, 24564),
    ],
)
def test_parameter_counts(variant: str, classes: int, count: int, priors: int) -> None:
    with torch.device("meta"):
        model = build(variant, num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == count
    assert sum(p.numel() for p in model.vgg.parameters()) == 20_483_904
    assert len(model.priors) == priors


def test_names_and_shapes_of_the_published_weights() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(v.shape) for name, v in build().state_dict().items()}
    indices = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33]
    names = [f"vgg.{i}" for i in indices] + [f"extras.{i}" for i in range(8)]
    names += [f"{head}.{k}" for head in ("loc", "conf") for k in range(6)]
    assert set(shapes) == {f"{n}.{e}" for n in names for e in ("weight", "bias")} | {
        "L2Norm.weight"
    }
    assert shapes["vgg.31.weight"] == (1024, 512, 3, 3)
    assert shapes["vgg.33.weight"] == (1024, 1024, 1, 1)
    assert shapes["conf.1.weight"] == (126, 1024, 3, 3)
    assert shapes["loc.5.weight"] == (16, 256, 3, 3)


@pytest.mark.parametrize(
    ("variant", "cells"),
    [("ssd300_vgg16", [38, 19, 10, 5, 3, 1]), ("ssd512_vgg16", [64, 32, 16, 8, 4, 2, 1])],
)
def test_feature_maps_fit_the_priors(variant: str, cells: list[int]) -> None:
    model = build(variant, width=0.0625).eval()
    found: list[int] = []
    hooks = [
        head.register_forward_hook(lambda _m, _i, out: found.append(out.shape[-1]))
        for head in model.loc
    ]
    with torch.no_grad():
        raw = model(torch.zeros(1, 3, *model.input_size, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    assert found == cells
    assert raw["loc"].shape[1] == len(model.priors)


def test_l2_norm_scales_the_channel_vector_of_each_cell() -> None:
    layer = L2Norm(3)
    x = torch.tensor([3.0, 0.0, 4.0]).view(1, 3, 1, 1).repeat(1, 1, 2, 2).requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out[0, :, 1, 0], torch.tensor([12.0, 0.0, 16.0]))
    zero = torch.zeros(1, 3, 1, 1, dtype=torch.float16, requires_grad=True)
    layer(zero).sum().backward()
    assert zero.grad is not None
    assert layer(zero).isfinite().all()


def test_initial_weights_are_glorots_and_biases_zero() -> None:
    model = build(width=0.25)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            taps = module.kernel_size[0] * module.kernel_size[1]
            bound = (6 / (taps * (module.in_channels + module.out_channels))) ** 0.5
            assert 0.8 * bound < module.weight.abs().max() <= bound
            assert module.bias is not None
            assert not module.bias.any()
    assert bool((model.L2Norm.weight == 20).all())


@pytest.fixture(scope="module")
def pair() -> tuple[SSDVGG16, torchvision_ssd.SSD]:
    """Our SSD300 and torchvision's with the same weights."""
    torch.manual_seed(0)
    theirs = torchvision_ssd.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=1 + CLASSES
    ).eval()
    mine = build(num_classes=CLASSES).eval()
    body = [
        module
        for part in (theirs.backbone.features, theirs.backbone.extra)
        for module in part.modules()
        if isinstance(module, nn.Conv2d)
    ]
    own = [m for part in (mine.vgg, mine.extras) for m in part if isinstance(m, nn.Conv2d)]
    own += [*mine.loc, *mine.conf]
    body += theirs.head.regression_head.module_list
    body += theirs.head.classification_head.module_list
    for ours, other in zip(own, body, strict=True):
        nn.init.xavier_uniform_(other.weight)
        nn.init.normal_(other.bias, std=0.1)
        ours.load_state_dict(other.state_dict())
    with torch.no_grad():
        theirs.backbone.scale_weight.copy_(10 + 20 * torch.rand(512))
        mine.L2Norm.weight.copy_(theirs.backbone.scale_weight)
    return mine, theirs


def test_outputs_equal_torchvisions(pair: tuple[SSDVGG16, torchvision_ssd.SSD]) -> None:
    mine, theirs = pair
    images = torch.randint(0, 256, (1, 3, 300, 300), dtype=torch.uint8)
    with torch.no_grad():
        raw = mine(images)
        # Its preprocessing rounds the means; ours is fed to both.
        heads = theirs.head(list(theirs.backbone(mine.normalize(images)).values()))
    assert raw["cls"].std() > 0.1
    torch.testing.assert_close(raw["loc"], heads["bbox_regression"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw["cls"], heads["cls_logits"], rtol=1e-4, atol=1e-4)


def anchors_of(theirs: torchvision_ssd.SSD, images: int) -> list[Tensor]:
    maps = [torch.zeros(images, 1, n, n) for n in (38, 19, 10, 5, 3, 1)]
    batch = ImageList(torch.zeros(images, 3, 300, 300), [(300, 300)] * images)
    return theirs.anchor_generator(batch, maps)


def random_raw(images: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "loc": torch.randn(images, 8732, 4, generator=generator).requires_grad_(),
        "cls": (2 * torch.randn(images, 8732, 1 + CLASSES, generator=generator)).requires_grad_(),
    }


def test_losses_and_gradients_equal_torchvisions(
    pair: tuple[SSDVGG16, torchvision_ssd.SSD],
) -> None:
    mine, theirs = pair
    generator = torch.Generator().manual_seed(4)
    counts = [5, 0, 30]
    low = torch.rand(3, 30, 2, generator=generator) * 200
    boxes = torch.cat([low, low + 8 + torch.rand(3, 30, 2, generator=generator) * 90], dim=-1)
    labels = torch.randint(0, CLASSES, (3, 30), generator=generator)
    valid = torch.arange(30) < torch.tensor(counts)[:, None]

    raw = random_raw(3, 6)
    found = losses_of_raw(mine, raw, Targets(boxes, labels, valid))
    grads = torch.autograd.grad(found["loc"] + found["cls"], list(raw.values()))

    anchors = anchors_of(theirs, 3)
    targets = [
        {"boxes": boxes[i, :count], "labels": labels[i, :count] + 1}
        for i, count in enumerate(counts)
    ]
    matched = [
        theirs.proposal_matcher(box_iou(target["boxes"], one))
        if len(target["boxes"])
        else torch.full((8732,), -1)
        for target, one in zip(targets, anchors, strict=True)
    ]
    heads = {"bbox_regression": raw["loc"], "cls_logits": raw["cls"]}
    want = theirs.compute_loss(targets, heads, anchors, matched)
    expected = torch.autograd.grad(
        want["bbox_regression"] + want["classification"], list(raw.values())
    )
    torch.testing.assert_close(found["loc"], want["bbox_regression"], rtol=1e-4, atol=0)
    torch.testing.assert_close(found["cls"], want["classification"], rtol=1e-4, atol=0)
    for gradient, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


def test_detections_equal_torchvisions(pair: tuple[SSDVGG16, torchvision_ssd.SSD]) -> None:
    mine, theirs = pair
    raw = {name: value.detach() for name, value in random_raw(2, 8).items()}
    config = SSDConfig.model_validate({"name": "ssd", "variant": "ssd300_vgg16"}).postprocess
    found = postprocess(mine.decode(raw), config)
    heads = {"bbox_regression": raw["loc"], "cls_logits": raw["cls"]}
    want = theirs.postprocess_detections(heads, anchors_of(theirs, 2), [(300, 300)] * 2)
    for one, other in zip(found, want, strict=True):
        assert len(one.scores) == 200
        torch.testing.assert_close(one.scores, other["scores"], rtol=1e-5, atol=1e-7)
        assert one.labels.tolist() == (other["labels"] - 1).tolist()
        torch.testing.assert_close(one.boxes, other["boxes"], rtol=1e-4, atol=1e-2)


def test_either_loss_trains_either_network() -> None:
    raw = {name: value.detach() for name, value in random_raw(1, 9).items()}
    box = torch.tensor([[[30.0, 40.0, 130.0, 160.0]]])
    targets = Targets(box, torch.zeros(1, 1).long(), torch.ones(1, 1).bool())
    focal = build(num_classes=CLASSES, width=0.0625, loss={"name": "focal"})
    scores = focal.decode(raw).scores
    torch.testing.assert_close(scores, raw["cls"][..., 1:].sigmoid())
    assert all(value.isfinite() for value in losses_of_raw(focal, raw, targets).values())


def test_threshold_of_detections_is_that_of_the_softmax() -> None:
    model = build(num_classes=CLASSES, width=0.0625)
    raw = {"loc": torch.zeros(1, 8732, 4), "cls": torch.zeros(1, 8732, 1 + CLASSES)}
    raw["cls"][0, 7, 3] = 5.0
    candidates = model.decode(raw)
    assert isinstance(candidates, Candidates)
    found = postprocess(candidates, PostprocessConfig(score_threshold=0.5))[0]
    assert found.labels.tolist() == [2]
    assert found.boxes[0].tolist() == pytest.approx(candidates.boxes[0, 7].tolist())
