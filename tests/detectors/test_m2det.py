"""M2Det against published facts and the oracle beside this file."""

from __future__ import annotations

import math
from typing import Any

import m2det_oracle as oracle
import pytest
import torch
import torchvision
from small_detectors import losses_of_raw
from torch import Tensor, nn

from detectors.boxes import to_centers
from detectors.m2det.config import M2DetConfig
from detectors.m2det.detector import M2Det, m2det_levels, m2det_priors, scale_cells
from detectors.postprocess import postprocess
from detectors.registry import build_detector
from detectors.structures import Targets

CLASSES = 5


def build(variant: str = "m2det320_vgg16", *, num_classes: int = CLASSES, **fields: Any) -> M2Det:
    config = M2DetConfig.model_validate({"variant": variant, **fields})
    model = build_detector(config, num_classes=num_classes)
    assert isinstance(model, M2Det)
    return model


def small(variant: str = "m2det320_vgg16", **fields: Any) -> M2Det:
    return build(variant, **{"width": 0.0625, "levels": 3, **fields})


def as_trained(model: M2Det) -> M2Det:
    """Give weights and statistics values that no layer could leave out unnoticed."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 1.5),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                values.data.uniform_(low, high, generator=generator)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    with torch.no_grad():
        # Images are in 0..255; brings the features to order one.
        first = model.base[0] if "vgg" in model.title else model.base.conv1
        first.weight.mul_(0.01)
    return model


@pytest.mark.parametrize("variant", ["m2det320_vgg16", "m2det512_vgg16", "m2det320_resnet50"])
@pytest.mark.parametrize("sfam", [False, True])
def test_outputs_equal_the_oracle(variant: str, sfam: bool) -> None:
    torch.manual_seed(1)
    model = as_trained(small(variant, sfam=sfam)).eval()
    size = model.input_size[0]
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        raw = model(images)
        loc, conf = oracle.forward(model.state_dict(), images)
    for found, want in ((raw["loc"], loc), (raw["cls"], conf)):
        assert want.std() > 0.01
        scale = float(want.abs().max())
        torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-5 * scale)


def test_names_and_shapes_of_the_released_weights() -> None:
    with torch.device("meta"):
        model = build("m2det512_vgg16", num_classes=80, sfam=True)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    units = ["reduce", "up_reduce", *(f"leach.{i}" for i in range(8))]
    for level in range(1, 9):
        for part, count in (("layers", 5), ("toplayer", 1), ("latlayer", 5), ("smooth", 5)):
            units += [f"unet{level}.{part}.{i}" for i in range(count)]
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"{unit}.conv.weight" for unit in units}
    expected |= {f"{unit}.bn.{name}" for unit in units for name in statistics}
    expected |= {f"Norm.{name}" for name in statistics}
    convs = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33]
    plain = [f"base.{i}" for i in convs]
    plain += [f"{head}.{s}" for head in ("loc", "conf") for s in range(6)]
    plain += [f"sfam_module.{fc}.{s}" for fc in ("fc1", "fc2") for s in range(6)]
    expected |= {f"{name}.{end}" for name in plain for end in ("weight", "bias")}
    assert set(shapes) == expected
    for name, shape in {
        "base.31.weight": (1024, 512, 3, 3),
        "reduce.conv.weight": (256, 512, 3, 3),
        "up_reduce.conv.weight": (512, 1024, 1, 1),
        "leach.7.conv.weight": (128, 768, 1, 1),
        "unet1.layers.0.conv.weight": (256, 128, 3, 3),
        "unet2.layers.0.conv.weight": (256, 384, 3, 3),
        "unet8.latlayer.3.conv.weight": (256, 256, 3, 3),
        "unet8.latlayer.4.conv.weight": (256, 384, 3, 3),
        "unet8.smooth.4.conv.weight": (256, 256, 1, 1),
        "unet8.toplayer.0.conv.weight": (256, 256, 1, 1),
        "Norm.running_var": (2048,),
        "loc.5.weight": (24, 2048, 3, 3),
        "conf.0.weight": (486, 2048, 3, 3),
        "sfam_module.fc1.3.weight": (128, 2048, 1, 1),
        "sfam_module.fc2.3.weight": (2048, 128, 1, 1),
    }.items():
        assert shapes[name] == shape, name


@pytest.mark.parametrize(
    ("part", "count"),
    [
        ("base", 20_483_904),
        ("reduce", 1_180_160),
        ("up_reduce", 525_312),
        ("leach", 98_560),
        ("unet1", 5_709_824),
        ("unet2", 6_889_472),
        ("unet8", 6_889_472),
        ("Norm", 4_096),
        ("loc", 2_654_352),
        ("conf", 53_750_628),
    ],
)
def test_parameters_of_each_part(part: str, count: int) -> None:
    with torch.device("meta"):
        model = build("m2det512_vgg16", num_classes=80)
    assert sum(p.numel() for p in getattr(model, part).parameters()) == count


@pytest.mark.parametrize("variant", ["m2det512_resnet50", "m2det512_resnet101"])
def test_names_of_a_resnet_are_torchvisions_and_its_classifier_is_frozen(variant: str) -> None:
    with torch.device("meta"):
        model = build(variant, num_classes=80)
        theirs = getattr(torchvision.models, variant.partition("_")[2])()
    ours = {n: v.shape for n, v in model.base.state_dict().items()}
    assert ours == {n: v.shape for n, v in theirs.state_dict().items()}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"base.fc.weight", "base.fc.bias"}
    assert sum(p.numel() for p in model.up_reduce.parameters()) == 1_049_600


def test_all_levels_share_one_reduction_that_sees_a_batch_once_for_each() -> None:
    model = build(width=0.0625, levels=8).train()
    images = torch.randint(0, 256, (2, 3, 320, 320), dtype=torch.uint8)
    with torch.no_grad():
        model(images)
    state = model.state_dict()
    assert {state[f"leach.{i}.conv.weight"].data_ptr() for i in range(8)} == {
        model.leach[0].conv.weight.data_ptr()
    }
    assert state["leach.0.bn.num_batches_tracked"] == 8
    assert state["unet1.layers.0.bn.num_batches_tracked"] == 1
    momenta = {
        name: module.momentum
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    assert momenta.pop("Norm") == 0.1
    assert set(momenta.values()) == {0.01}


@pytest.mark.parametrize(
    ("size", "cells", "count"),
    [
        (320, [40, 20, 10, 5, 3, 1], 12_810),
        (512, [64, 32, 16, 8, 4, 2], 32_760),
        (704, [88, 44, 22, 11, 6, 4], 62_022),
        (800, [100, 50, 25, 13, 7, 5], 80_208),
    ],
)
def test_priors_equal_the_oracle(size: Any, cells: list[int], count: int) -> None:
    assert scale_cells(size) == [level.rows for level in m2det_levels(size)] == cells
    found = m2det_priors(size)
    assert len(found) == count
    torch.testing.assert_close(found, oracle.priors(size), rtol=0, atol=1e-12)


def test_priors_by_hand() -> None:
    # 512: 30.72 and 76.8 pixels at the first map; centres at 4, 12, ... pixels.
    boxes = m2det_priors(512)
    between = math.sqrt(30.72 * 76.8)
    long, short = 30.72 * math.sqrt(2), 30.72 / math.sqrt(2)
    want = [(4, 4, 30.72, 30.72), (4, 4, between, between), (4, 4, long, short)]
    want += [(4, 4, short, long), (4, 4, 30.72 * 3**0.5, 30.72 / 3**0.5)]
    torch.testing.assert_close(boxes[:5] * 512, torch.tensor(want, dtype=torch.float64))
    assert (boxes[6, :2] * 512).tolist() == [12, 4]
    # The last map: 0.87 of the image; elongated ones are cut to 1, and so reach beyond it.
    wide = boxes[-4]
    assert wide[2] == 1.0
    assert wide[3] == pytest.approx(445.44 / 512 / math.sqrt(2), abs=1e-12)
    assert (wide[0] + wide[2] / 2) > 1


def truth_of(counts: list[int], seed: int) -> tuple[Targets, list[tuple[Tensor, Tensor]]]:
    """Padded targets in pixels of 320, and the same as lists relative to the image."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(len(counts), max(counts), 2, generator=generator) * 0.7
    high = low + 0.02 + torch.rand(low.shape, generator=generator) * 0.28
    boxes = torch.cat([low, high], -1)
    labels = torch.randint(0, CLASSES, boxes.shape[:2], generator=generator)
    valid = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    lists = [(boxes[i, :n], labels[i, :n] + 1) for i, n in enumerate(counts)]
    return Targets(boxes * 320, labels, valid), lists


@pytest.mark.parametrize("counts", [[4, 0, 9], [0, 0, 1]], ids=str)
def test_losses_and_gradients_equal_the_oracle(counts: list[int]) -> None:
    model = small()
    targets, lists = truth_of(counts, seed=3)
    generator = torch.Generator().manual_seed(5)
    raw = {
        "loc": torch.randn(3, 12_810, 4, generator=generator).requires_grad_(),
        "cls": (2 * torch.randn(3, 12_810, 1 + CLASSES, generator=generator)).requires_grad_(),
    }
    found = losses_of_raw(model, raw, targets)
    grads = torch.autograd.grad(found["loc"] + found["cls"], list(raw.values()))
    wide = [value.detach().double().requires_grad_() for value in raw.values()]
    loc, cls = oracle.losses(*wide, lists, oracle.priors(320))
    expected = torch.autograd.grad(loc + cls, wide)
    torch.testing.assert_close(found["loc"].double(), loc, rtol=1e-5, atol=0)
    torch.testing.assert_close(found["cls"].double(), cls, rtol=1e-5, atol=0)
    for gradient, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(gradient.double(), other, rtol=1e-4, atol=1e-7)


def test_without_boxes_there_is_nothing_to_learn() -> None:
    model = small()
    raw = {"loc": torch.ones(2, 12_810, 4), "cls": torch.ones(2, 12_810, 1 + CLASSES)}
    none = Targets(torch.zeros(2, 3, 4), torch.zeros(2, 3).long(), torch.zeros(2, 3).bool())
    assert all(value == 0 for value in losses_of_raw(model, raw, none).values())


def test_decoding_inverts_encoding_and_does_not_cut() -> None:
    model = small()
    raw = {"loc": torch.zeros(1, 12_810, 4), "cls": torch.zeros(1, 12_810, 1 + CLASSES)}
    raw["loc"][0, 0] = torch.tensor([1.0, -1.0, 2.0, 0.0])
    raw["cls"][0, 0, 2] = 3.0
    boxes, scores = model.decode(raw)
    # Prior 0: centre 4, side 25.6 pixels of 320. Centre + 0.1 x side, width x e^0.4.
    want = torch.tensor([4 + 2.56, 4 - 2.56, 25.6 * math.exp(0.4), 25.6])
    torch.testing.assert_close(to_centers(boxes[0, 0]), want, rtol=1e-5, atol=1e-4)
    assert boxes[0, 0, 0] < 0
    assert scores.shape == (1, 12_810, CLASSES)
    assert scores[0, 0, 1] == pytest.approx(math.exp(3) / (math.exp(3) + CLASSES), rel=1e-5)


def test_initial_weights_are_the_released_codes() -> None:
    torch.manual_seed(0)
    model = build(width=0.5, levels=2)
    for conv in (model.unet2.layers[1].conv, model.reduce.conv, model.leach[0].conv):
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.05)
    for head in (*model.loc, *model.conf):
        assert head.weight.std().item() == pytest.approx(
            1 / math.sqrt(3 * 9 * head.in_channels), rel=0.05
        )
        assert not head.bias.any()


def test_initial_weights_of_the_mindspore_zoo() -> None:
    torch.manual_seed(0)
    model = build(width=0.5, levels=2, initialization="mindspore")
    for conv in (model.unet2.layers[1].conv, model.reduce.conv, model.loc[0], model.conf[3]):
        assert conv.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert not model.conf[3].bias.any()
    assert model.base[2].weight.std().item() > 0.01


def test_defaults_are_the_released_evaluation() -> None:
    config = M2DetConfig()
    assert (config.size, config.published_backbone, config.levels) == (512, "vgg16", 8)
    assert not config.sfam
    assert config.loss.model_dump() == {
        "name": "multibox",
        "match_threshold": 0.5,
        "negative_ratio": 3.0,
    }
    assert config.postprocess.model_dump() == {
        "score_threshold": 0.1,
        "top_k_per_class": None,
        "nms": "soft_linear",
        "iou_threshold": 0.3,
        "sigma": 0.5,
        "soft_score_threshold": 0.001,
        "plus_one": True,
        "max_per_class": 50,
        "max_per_image": None,
        "class_agnostic": False,
    }
    changed = M2DetConfig.model_validate({"postprocess": {"score_threshold": 0.05}}).postprocess
    assert (changed.score_threshold, changed.nms, changed.max_per_class) == (
        0.05,
        "soft_linear",
        50,
    )


def test_overlapping_boxes_lose_score_linearly() -> None:
    model = small()
    raw = {"loc": torch.zeros(1, 12_810, 4), "cls": torch.zeros(1, 12_810, 1 + CLASSES)}
    raw["cls"][..., 0] = 20.0
    # The square and the tall box of one cell far from the border, 25.6 pixels and of ratio 2.
    first = 6 * (20 * 40 + 20)
    raw["cls"][0, first, 1] = 24.0
    raw["cls"][0, first + 3, 1] = 22.0
    (found,) = postprocess(model.decode(raw), M2DetConfig().postprocess)
    side, short = 25.6, 25.6 / math.sqrt(2)
    shared = (short + 1) * (side + 1)
    union = (side + 1) ** 2 + (short + 1) * (side * math.sqrt(2) + 1) - shared
    weight = 1 - shared / union
    sure, second = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-2))
    torch.testing.assert_close(
        found.scores, torch.tensor([sure, second * weight]), rtol=1e-4, atol=0
    )


def test_titles_say_what_is_not_published() -> None:
    assert M2DetConfig().title == "m2det512_vgg16"
    changed = M2DetConfig(variant="m2det320_vgg16", width=0.25, levels=4, sfam=True)
    assert changed.title == "m2det320_vgg16 at width 0.25 with 4 levels with SFAM"


def test_one_image_alone_cannot_train_at_320() -> None:
    model = small()
    with pytest.raises(ValueError, match="give each worker at least 2 images"):
        model(torch.zeros(1, 3, 320, 320, dtype=torch.uint8))
    with pytest.raises(ValueError, match="takes images of 320 x 320 pixels"):
        model.eval()(torch.zeros(1, 3, 300, 300, dtype=torch.uint8))
