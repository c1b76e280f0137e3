"""Layouts of the MindSpore model zoo to native names: every tensor accounted for."""

from __future__ import annotations

import re

import pytest
import torch
from published_layouts import like, vgg16_reducedfc
from torch import Tensor
from torchvision.models import resnet50

from detectors.registry import variant_config
from detectors.skeleton import skeleton
from detectors.weights.fit import COCO_NAMES, convert

M2DET = variant_config("m2det320_vgg16")
VGG = variant_config("ssd300_vgg16")
SPINENET = variant_config("retinanet_spinenet49s")
RCNN = variant_config("faster_rcnn_torchvision")
ZOO_RCNN = variant_config("faster_rcnn_mindspore")
MOBILENET = variant_config("ssd300_mobilenet_v2")


def as_mindspore(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as MindSpore names those of its batch normalisation."""
    names = {
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
        "weight": "gamma",
        "bias": "beta",
    }
    named = {}
    for name, value in state.items():
        stem, _, ending = name.rpartition(".")
        if ending == "num_batches_tracked":
            continue
        if f"{stem}.running_mean" in state:
            ending = names[ending]
        named[f"{stem}.{ending}"] = value
    return named


def test_a_mindspore_m2det_fills_the_network() -> None:
    state = like(skeleton(M2DET, num_classes=80).state_dict())
    # One layer under all of these names.
    state = {name: state[re.sub(r"^leach\.\d+", "leach.0", name)] for name in state}
    tensors = {
        re.sub(r"^base\.(\d+)\.", r"base.layers.\1.", name): value
        for name, value in as_mindspore(state).items()
    }
    assert "base.layers.0.weight" in tensors
    assert "leach.0.bn.moving_variance" in tensors
    fitted = convert({f"network.{k}": v for k, v in tensors.items()}, M2DET, num_classes=80)
    assert fitted.report.layout == "mindspore_m2det"
    assert fitted.report.counts["left over"] == 0
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(fitted.tensors[name], value), name


@pytest.mark.parametrize("converted", [False, True], ids=["classifier", "backbone.ckpt"])
def test_a_mindspore_resnet_fills_the_backbone(converted: bool) -> None:
    with torch.device("meta"):
        model = resnet50(weights=None)
    state = like(model.state_dict())
    tensors = {}
    for name, value in as_mindspore(state).items():
        new = name.replace("downsample", "down_sample_layer").replace("fc.", "end_point.")
        if converted and not new.startswith("end_point"):
            new = "backbone." + new.replace("down_sample_layer.0", "conv_down_sample").replace(
                "down_sample_layer.1", "bn_down_sample"
            )
        tensors[new] = value
    fitted = convert(tensors, RCNN, num_classes=3)
    expected = "mindspore_faster_rcnn_backbone" if converted else "mindspore_resnet"
    assert fitted.report.layout == expected
    left = {entry.source for entry in fitted.report.of("left over")}
    assert left == {"end_point.weight", "end_point.bias"}
    for name, value in state.items():
        if not name.endswith("num_batches_tracked") and not name.startswith("fc"):
            assert torch.equal(fitted.tensors[f"backbone.body.{name}"], value), name


#: Parts of the zoo's Faster R-CNN by torchvision's names; see its fpn_neck.py, rpn.py and rcnn.py.
ZOO_NAMES = {
    "rpn.head.conv.0.0": "rpn_with_loss.rpn_convs_list.0.rpn_conv",
    "rpn.head.cls_logits": "rpn_with_loss.rpn_convs_list.0.rpn_cls",
    "rpn.head.bbox_pred": "rpn_with_loss.rpn_convs_list.0.rpn_reg",
    "roi_heads.box_head.fc6": "rcnn.shared_fc_0",
    "roi_heads.box_head.fc7": "rcnn.shared_fc_1",
    "roi_heads.box_predictor.cls_score": "rcnn.cls_scores",
    "roi_heads.box_predictor.bbox_pred": "rcnn.reg_scores",
}


@pytest.mark.parametrize("background", [True, False], ids=["324 offsets", "320 offsets"])
@pytest.mark.parametrize("neck", ["fpn_ncek", "fpn_neck"])
def test_a_mindspore_faster_rcnn_fills_the_network(neck: str, background: bool) -> None:
    state = like(skeleton(ZOO_RCNN, num_classes=80).state_dict())
    boxes = "roi_heads.box_predictor.bbox_pred"
    if not background:
        for ending in ("weight", "bias"):
            state[f"{boxes}.{ending}"][:4] = 0.0
    tensors = {}
    for name, value in as_mindspore(state).items():
        stem, _, ending = name.rpartition(".")
        if match := re.fullmatch(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)\.0", stem):
            kind = {"inner": "lateral", "layer": "fpn"}[match[1]]
            stem = f"{neck}.{kind}_convs_list.{match[2]}"
        elif stem.startswith("backbone.body."):
            stem = stem.replace("body.", "").replace("downsample.0", "conv_down_sample")
            stem = stem.replace("downsample.1", "bn_down_sample")
        else:
            stem = ZOO_NAMES[stem]
        if stem == "rcnn.reg_scores" and not background:
            value = value[4:]
        # Dense layers without transposition: input first.
        turned = stem.startswith("rcnn.") and ending == "weight"
        tensors[f"{stem}.{ending}"] = value.t().contiguous() if turned else value
    assert tensors["rcnn.reg_scores.weight"].shape == (1024, 324 if background else 320)
    fitted = convert(tensors, ZOO_RCNN)
    assert (fitted.report.layout, fitted.num_classes) == ("mindspore_faster_rcnn", 80)
    assert (fitted.report.counts["left over"], fitted.report.counts["missing"]) == (0, 0)
    assert all(torch.equal(fitted.tensors[name], state[name]) for name in fitted.tensors)

    narrow = convert(tensors, ZOO_RCNN, class_names=("car", "person"))
    rows = [*range(4), *range(12, 16), *range(4, 8)]  # Background, car (3), person (1).
    assert narrow.tensors[f"{boxes}.bias"].tolist() == state[f"{boxes}.bias"][rows].tolist()


def test_the_vgg_of_the_mindspore_port_fills_the_backbone() -> None:
    tensors = vgg16_reducedfc()
    fitted = convert({f"layers.{k}": v for k, v in tensors.items()}, VGG, num_classes=3)
    assert fitted.report.layout == "mindspore_vgg16_reducedfc"
    assert fitted.report.counts["loaded"] == 30
    for name, value in tensors.items():
        assert torch.equal(fitted.tensors[f"vgg.{name}"], value)


def test_mindspore_endings_are_renamed() -> None:
    endings = {
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    }
    state = skeleton(MOBILENET, num_classes=80).state_dict()
    kept = {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    norms = {name.rpartition(".")[0] for name in kept if name.endswith("running_mean")}
    tensors = {}
    for name, tensor in like(kept).items():
        stem, _, ending = name.rpartition(".")
        if stem in norms:
            ending = {"weight": "gamma", "bias": "beta", **endings}[ending]
        tensors[f"network.{stem}.{ending}"] = tensor
    fitted = convert(tensors, MOBILENET)
    assert fitted.report.layout == "mindspore_ssd"
    assert fitted.report.counts["loaded"] == len(kept) == 409
    assert fitted.report.counts["left over"] == 0
    gamma = tensors["network.backbone.features_1.0.features.1.gamma"]
    assert torch.equal(fitted.tensors["backbone.features_1.0.features.1.weight"], gamma)
    assert fitted.class_names == COCO_NAMES


def test_a_mindspore_spinenet_detector_fills_the_network() -> None:
    state = like(skeleton(SPINENET, num_classes=80).state_dict())
    shared = r"(bbox_head\.\w+_convs)\.\d\.(\d\.conv\.weight)"
    state = {name: state[re.sub(shared, r"\1.0.\2", name)] for name in state}
    # What the levels share is one parameter there, saved under its first name.
    tensors = {
        re.sub(r"\.bn\.(\w+)$", r".norm.\1", name): value
        for name, value in as_mindspore(state).items()
        if re.sub(shared, r"\1.0.\2", name) == name
    }
    assert {"backbone.conv1.norm.gamma", "bbox_head.cls_convs.4.3.norm.beta"} <= set(tensors)
    fitted = convert({f"net.{name}": value for name, value in tensors.items()}, SPINENET)
    assert fitted.report.layout == "mindspore_spinenet_detector"
    assert fitted.class_names == COCO_NAMES
    assert fitted.report.counts["left over"] == 0
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(fitted.tensors[name], value), name
