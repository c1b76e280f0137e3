"""Published layouts to native names: every tensor accounted for, values checked one by one.

No file can be downloaded, so each is made in the published layout: torchvision's by its own models
without weights, the others by the names and shapes on record.
"""

from __future__ import annotations

import re

import pytest
import torch
from published_layouts import amdegroot_ssd300, like, vgg16_reducedfc
from torch import Tensor
from torchvision.models import mobilenet_v2, resnet50, vgg16
from torchvision.models.detection import fasterrcnn_resnet50_fpn, ssd300_vgg16

from detectors.registry import DETECTORS, build_detector, variant_config, variants
from detectors.skeleton import skeleton
from detectors.weights.archives import WeightsError
from detectors.weights.fit import (
    COCO_IDS,
    COCO_NAMES,
    COCO_NAMES_BY_ID,
    VOC_NAMES,
    class_dependent,
    convert,
    fit_native,
    without_classes,
)
from detectors.weights.layouts import LAYOUTS, Layout

M2DET = variant_config("m2det320_vgg16")
VGG = variant_config("ssd300_vgg16")
SPINENET = variant_config("retinanet_spinenet49s")
RCNN = variant_config("faster_rcnn_torchvision")
MOBILENET = variant_config("ssd300_mobilenet_v2")


@pytest.fixture(scope="module")
def torchvision_ssd() -> dict[str, Tensor]:
    with torch.device("meta"):
        model = ssd300_vgg16(weights=None, weights_backbone=None)
    return like(model.state_dict())


def test_names_of_classes() -> None:
    assert (len(COCO_NAMES), len(VOC_NAMES), len(COCO_NAMES_BY_ID)) == (80, 20, 90)
    assert (COCO_IDS[0], COCO_IDS[11], COCO_IDS[-1]) == (1, 13, 90)
    assert dict(zip(COCO_IDS, COCO_NAMES, strict=True))[44] == "bottle"
    assert dict(zip(COCO_IDS, COCO_NAMES, strict=True))[90] == "toothbrush"
    assert COCO_NAMES_BY_ID[43] == "bottle"
    assert COCO_NAMES_BY_ID[11] == "unused 12"


def test_vgg16_reducedfc_fills_the_backbone() -> None:
    tensors = vgg16_reducedfc()
    fitted = convert(tensors, VGG, num_classes=3)
    assert fitted.report.layout == "vgg16_reducedfc"
    assert fitted.report.counts == {"loaded": 30, "adapted": 0, "missing": 41, "left over": 0}
    for name, value in tensors.items():
        assert torch.equal(fitted.tensors[f"vgg.{name}"], value)
    assert fitted.num_classes is None
    (conf,) = (entry for entry in fitted.report.entries if entry.name == "conf.0.bias")
    assert (conf.status, conf.shape) == ("missing", (16,))


@pytest.mark.parametrize("zoo", [False, True], ids=["torchvision", "mindspore"])
def test_a_vgg_classifier_is_decimated_to_the_reduced_layers(zoo: bool) -> None:
    with torch.device("meta"):
        state = vgg16(weights=None).state_dict()
    tensors = like(state)
    # The zoo's network without batch normalisation has the same layers in the same places.
    layers = "layers" if zoo else "features"
    named = {re.sub("^features", layers, name): value for name, value in tensors.items()}
    fitted = convert(named, VGG)
    assert fitted.report.layout == ("mindspore_vgg16" if zoo else "torchvision_vgg16")
    assert fitted.report.counts["loaded"] == 26
    assert fitted.report.counts["adapted"] == 4
    left = {entry.source for entry in fitted.report.of("left over")}
    assert left == {"classifier.6.weight", "classifier.6.bias"}
    assert torch.equal(fitted.tensors["vgg.28.bias"], tensors["features.28.bias"])
    # Output 3 is the classifier's 12, input 7 its 7, taps (0, 1, 2) are (0, 3, 6) of 7.
    fc6 = tensors["classifier.0.weight"].view(4096, 512, 7, 7)
    assert fitted.tensors["vgg.31.weight"][3, 7, 1, 2] == fc6[12, 7, 3, 6]
    assert fitted.tensors["vgg.31.weight"][1023, 511, 2, 0] == fc6[4092, 511, 6, 0]
    assert fitted.tensors["vgg.31.bias"][5] == tensors["classifier.0.bias"][20]
    assert fitted.tensors["vgg.33.weight"][2, 9, 0, 0] == tensors["classifier.3.weight"][8, 36]
    assert fitted.tensors["vgg.33.weight"].shape == (1024, 1024, 1, 1)


def test_weights_of_features_alone_do_not_bring_their_nan_along() -> None:
    """Torchvision's IMAGENET1K_FEATURES fill the classifier with NaN."""
    with torch.device("meta"):
        state = vgg16(weights=None).state_dict()
    tensors = like(state)
    for name in list(tensors):
        if name.startswith("classifier"):
            tensors[name].fill_(torch.nan)
    report = convert(tensors, VGG).report
    assert report.counts["adapted"] == 0
    (fc6,) = (entry for entry in report.entries if entry.name == "vgg.31.weight")
    assert (fc6.status, fc6.note) == ("missing", "holds NaN or infinity")


def test_amdegroot_ssd_loads_as_it_is_and_knows_its_classes() -> None:
    tensors = amdegroot_ssd300(21)
    fitted = convert({f"module.{name}": value for name, value in tensors.items()}, VGG)
    assert fitted.report.counts == {"loaded": 71, "adapted": 0, "missing": 0, "left over": 0}
    assert fitted.class_names == VOC_NAMES
    model = build_detector(VGG, num_classes=20)
    model.load_state_dict(fitted.tensors, strict=True)
    assert torch.equal(model.state_dict()["extras.5.weight"], tensors["extras.5.weight"])


def test_chosen_classes_keep_their_rows_and_the_background() -> None:
    tensors = amdegroot_ssd300(21)
    fitted = convert(tensors, VGG, class_names=("dog", "aeroplane"))
    assert fitted.report.counts["adapted"] == 12
    assert fitted.class_names == ("dog", "aeroplane")
    # Four boxes of 21 channels; background is channel 0, aeroplane 1, dog 12.
    bias = tensors["conf.0.bias"]
    wanted = [bias[21 * box + channel] for box in range(4) for channel in (0, 12, 1)]
    assert fitted.tensors["conf.0.bias"].tolist() == [value.item() for value in wanted]
    assert torch.equal(fitted.tensors["conf.1.weight"][4], tensors["conf.1.weight"][21 + 12])
    with pytest.raises(WeightsError, match="no class 'unicorn' among its 20"):
        convert(tensors, VGG, class_names=("dog", "unicorn"))


def test_torchvision_ssd300_becomes_this_ssd300(torchvision_ssd: dict[str, Tensor]) -> None:
    fitted = convert(torchvision_ssd, VGG)
    assert fitted.report.counts == {"loaded": 71, "adapted": 0, "missing": 0, "left over": 0}
    same = {
        "L2Norm.weight": "backbone.scale_weight",
        "vgg.21.weight": "backbone.features.21.weight",
        "vgg.24.weight": "backbone.extra.0.1.weight",
        "vgg.28.bias": "backbone.extra.0.5.bias",
        "vgg.31.weight": "backbone.extra.0.7.1.weight",
        "vgg.33.bias": "backbone.extra.0.7.3.bias",
        "extras.0.weight": "backbone.extra.1.0.weight",
        "extras.7.weight": "backbone.extra.4.2.weight",
        "conf.3.weight": "head.classification_head.module_list.3.weight",
        "loc.5.bias": "head.regression_head.module_list.5.bias",
    }
    for ours, theirs in same.items():
        assert torch.equal(fitted.tensors[ours], torchvision_ssd[theirs]), ours
    # Channels are COCO ids: 90 of them, of which 80 are in use.
    assert fitted.num_classes == 90
    narrowed = convert(torchvision_ssd, VGG, class_names=COCO_NAMES)
    bias = torchvision_ssd["head.classification_head.module_list.0.bias"]
    assert narrowed.tensors["conf.0.bias"].tolist() == [
        bias[91 * box + channel].item() for box in range(4) for channel in (0, *COCO_IDS)
    ]


def test_a_name_with_a_number_without_end_is_left_over(torchvision_ssd: dict[str, Tensor]) -> None:
    endless = f"backbone.features.{'9' * 5000}.weight"
    fitted = convert({**torchvision_ssd, endless: torch.zeros(1)}, VGG)
    assert [entry.source for entry in fitted.report.of("left over")] == [endless]


def test_torchvision_ssd300_gives_the_same_outputs_after_conversion() -> None:
    torch.manual_seed(0)
    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4).eval()
    fitted = convert(theirs.state_dict(), VGG)
    ours = build_detector(VGG, num_classes=3).eval()
    ours.load_state_dict(fitted.tensors)
    x = torch.randn(1, 3, 300, 300) * 40
    with torch.inference_mode():
        loc, conf = ours.predict(x)  # type: ignore[operator]
        raw = theirs.head(list(theirs.backbone(x).values()))
    torch.testing.assert_close(loc, raw["bbox_regression"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(conf, raw["cls_logits"], rtol=1e-4, atol=1e-4)


def test_a_mobilenet_classifier_is_cut_after_block_13() -> None:
    with torch.device("meta"):
        state = mobilenet_v2(weights=None).state_dict()
    tensors = like(state)
    fitted = convert(tensors, MOBILENET)
    assert fitted.report.counts["loaded"] == 312
    left = {entry.source for entry in fitted.report.of("left over")}
    assert left == {"classifier.1.weight", "classifier.1.bias"}
    missing = {re.split(r"\.\d", str(entry.name))[0] for entry in fitted.report.of("missing")}
    assert missing == {
        "backbone.expand_layer_conv_13.features",
        "multi_residual",
        "multi_box.multi_loc_layers",
        "multi_box.multi_cls_layers",
    }
    same = {
        "backbone.features_1.0.features.0.weight": "features.0.0.weight",
        "backbone.features_1.1.conv.0.features.1.running_var": "features.1.conv.0.1.running_var",
        "backbone.features_1.1.conv.1.weight": "features.1.conv.1.weight",
        "backbone.features_1.13.conv.2.weight": "features.13.conv.2.weight",
        "backbone.features_2.0.conv.0.features.0.weight": "features.14.conv.0.0.weight",
        "backbone.features_2.3.conv.3.bias": "features.17.conv.3.bias",
        "backbone.features_2.4.features.0.weight": "features.18.0.weight",
    }
    for ours, theirs in same.items():
        assert torch.equal(fitted.tensors[ours], tensors[theirs]), ours


def test_half_precision_becomes_single() -> None:
    tensors = {name: value.half() for name, value in vgg16_reducedfc().items()}
    fitted = convert(tensors, VGG)
    assert fitted.report.counts["adapted"] == 30
    assert {entry.note for entry in fitted.report.of("adapted")} == {"float16 to float32"}
    assert fitted.tensors["vgg.0.bias"].dtype == torch.float32


def test_another_width_fits_nothing_and_says_why() -> None:
    narrow = variant_config("ssd300_mobilenet_v2", width=0.5)
    with torch.device("meta"):
        state = mobilenet_v2(weights=None).state_dict()
    with pytest.raises(WeightsError, match="not one tensor of the file"):
        convert(like(state), narrow)
    with pytest.raises(WeightsError, match="ssd takes these layouts: amdegroot_ssd"):
        convert(like(state), VGG)
    with pytest.raises(WeightsError, match="read as native weights"):
        convert({"something": torch.ones(2)}, VGG)


def test_a_layout_can_be_named_and_is_then_held_to_its_word() -> None:
    with pytest.raises(WeightsError, match=r"is not torchvision's ssd300_vgg16: it has no tensor"):
        convert(vgg16_reducedfc(), VGG, layout="torchvision_ssd300")
    with pytest.raises(WeightsError, match="unknown layout 'caffe'; allowed are native, m2det"):
        convert(vgg16_reducedfc(), VGG, layout="caffe")


def test_native_weights_without_their_classes() -> None:
    tensors = amdegroot_ssd300(4)
    same = fit_native(tensors, VGG, num_classes=3)
    assert same.report.counts["loaded"] == 71
    other = fit_native(tensors, VGG, num_classes=3, keep_classes=False)
    assert other.report.counts == {"loaded": 59, "adapted": 0, "missing": 12, "left over": 12}
    assert {entry.note for entry in other.report.of("missing", "left over")} == {
        "belongs to other classes"
    }
    more = without_classes(convert(tensors, VGG), VGG, num_classes=7)
    (conf,) = (entry for entry in more.report.of("missing") if entry.name == "conf.0.bias")
    assert conf.shape == (32,)
    assert not any(name.startswith("conf") for name in more.tensors)
    assert more.class_names is None


def test_one_tensor_under_two_names_must_have_one_value() -> None:
    """As M2Det's ``leach``, of which a checkpoint lists eight and the network has one."""
    from detectors.weights.fit import _place
    from detectors.weights.layouts import Piece

    shared = torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.ModuleDict({"leach": torch.nn.ModuleList([shared, shared])})
    value = torch.arange(4.0).view(2, 2)

    def pieces(*values: Tensor) -> list[Piece]:
        names = [f"leach.{index}.weight" for index in range(len(values))]
        return [Piece(n, v, n, (2, 2)) for n, v in zip(names, values, strict=True)]

    taken, report = _place(pieces(value, value), model, "m2det")
    assert report.counts["loaded"] == 2
    taken, report = _place(pieces(value), model, "m2det")
    assert report.counts["adapted"] == 1
    assert torch.equal(taken["leach.1.weight"], value)
    with pytest.raises(WeightsError, match="differ, but the network has one tensor for both"):
        _place(pieces(value, value + 1), model, "m2det")


def test_a_released_m2det_keeps_its_names() -> None:
    narrow = variant_config("m2det320_vgg16", width=0.125)
    state = skeleton(narrow, num_classes=80).state_dict()
    tensors = like(state)
    for name in list(tensors):
        # One reduction for all levels, listed under each.
        if match := re.fullmatch(r"leach\.\d\.(.*)", name):
            tensors[name] = tensors[f"leach.0.{match[1]}"]
    fitted = convert({f"module.{name}": t for name, t in tensors.items()}, narrow)
    assert fitted.report.layout == "m2det"
    assert fitted.report.counts == {"loaded": 887, "adapted": 0, "missing": 0, "left over": 0}
    assert all(torch.equal(fitted.tensors[name], tensors[name]) for name in tensors)
    assert fitted.class_names == COCO_NAMES

    # MindSpore lists the shared reduction once.
    once = {n: t for n, t in tensors.items() if not re.match(r"leach\.[1-7]\.", n)}
    filled_up = convert(once, narrow)
    assert filled_up.report.counts["adapted"] == 7 * 6
    assert filled_up.report.counts["missing"] == 0
    name = "leach.5.bn.running_var"
    assert torch.equal(filled_up.tensors[name], tensors["leach.0.bn.running_var"])

    own = {**tensors, "leach.3.conv.weight": tensors["leach.3.conv.weight"] + 1}
    with pytest.raises(WeightsError, match="the network has one tensor for both"):
        convert(own, narrow)


def test_backbones_find_their_place_in_m2det() -> None:
    reduced = vgg16_reducedfc()
    fitted = convert(reduced, M2DET)
    assert fitted.report.counts["loaded"] == 30
    assert torch.equal(fitted.tensors["base.31.weight"], reduced["31.weight"])
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    resnet = like(state)
    # The released networks keep the classifier.
    fitted = convert(resnet, variant_config("m2det512_resnet50"))
    assert fitted.report.counts["loaded"] == len(state) == 320
    assert fitted.report.counts["left over"] == 0
    value = resnet["layer4.2.bn3.running_mean"]
    assert torch.equal(fitted.tensors["base.layer4.2.bn3.running_mean"], value)
    with pytest.raises(WeightsError, match="not one tensor of the file"):
        convert(reduced, variant_config("m2det512_resnet50"))


@pytest.mark.parametrize("age", ["released", "today"])
def test_torchvision_faster_rcnn_becomes_this_one(age: str) -> None:
    with torch.device("meta"):
        state = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    tensors = like(state)
    pattern = r"(_blocks\.\d|rpn\.head\.conv)(\.0)+\."
    given = {re.sub(pattern, r"\1.", n): t for n, t in tensors.items()}
    fitted = convert(given if age == "released" else tensors, RCNN)
    # Normalisation with stored statistics counts no batches.
    counts = fitted.report.counts
    assert (counts["loaded"], counts["adapted"], counts["missing"]) == (295, 0, 0)
    left = [str(entry.source) for entry in fitted.report.of("left over")]
    assert len(left) == 53
    assert all(name.endswith("num_batches_tracked") for name in left)
    assert all(torch.equal(fitted.tensors[name], tensors[name]) for name in fitted.tensors)
    assert fitted.num_classes == 90

    narrow = convert(tensors, RCNN, class_names=("car", "person"))
    boxes = "roi_heads.box_predictor.bbox_pred.bias"
    rows = [*range(4), *range(12, 16), *range(4, 8)]  # Background, car (3), person (1).
    assert narrow.tensors[boxes].tolist() == tensors[boxes][rows].tolist()
    scores = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(narrow.tensors[scores], tensors[scores][[0, 3, 1]])


def test_a_resnet_classifier_becomes_the_body() -> None:
    with torch.device("meta"):
        state = resnet50(weights=None).state_dict()
    tensors = like(state)
    fitted = convert(tensors, RCNN)
    assert fitted.report.counts["loaded"] == 265
    value = tensors["layer3.2.conv2.weight"]
    assert torch.equal(fitted.tensors["backbone.body.layer3.2.conv2.weight"], value)
    left = {str(entry.source).rpartition(".")[2] for entry in fitted.report.of("left over")}
    assert left == {"num_batches_tracked", "weight", "bias"}


def test_a_spinenet_detector_keeps_its_names_and_a_backbone_its_place() -> None:
    state = skeleton(SPINENET, num_classes=80).state_dict()
    tensors = like(state)
    for name in list(tensors):
        # One convolution for all levels, listed under each.
        if match := re.fullmatch(r"(bbox_head\.\w+_convs)\.\d\.(\d\.conv\.weight)", name):
            tensors[name] = tensors[f"{match[1]}.0.{match[2]}"]
    whole = convert(tensors, SPINENET)
    assert whole.report.layout == "spinenet_detector"
    assert whole.report.counts["loaded"] == len(state)
    assert whole.class_names == COCO_NAMES
    narrow = convert(tensors, SPINENET, class_names=("bicycle", "person"))
    bias = tensors["bbox_head.retina_cls.bias"].view(9, 80)
    assert narrow.tensors["bbox_head.retina_cls.bias"].tolist() == bias[:, [1, 0]].ravel().tolist()

    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    alone = convert(backbone, SPINENET)
    assert alone.report.layout == "spinenet"
    assert alone.report.counts["loaded"] == len(backbone)
    name = "merge_ops.3.resample_ops.1.downsample_conv.conv.weight"
    assert torch.equal(alone.tensors[f"backbone.{name}"], backbone[name])

    # Of a Mask R-CNN the backbone is all that has a place here.
    mask = {n: t for n, t in tensors.items() if n.startswith("backbone.")}
    mask["roi_head.bbox_head.fc_cls.bias"] = torch.zeros(81)
    report = convert(mask, SPINENET).report
    assert report.counts["loaded"] == len(backbone)
    assert report.counts["left over"] == 1


def test_the_levels_of_a_retinanet_must_share_their_convolutions() -> None:
    state = skeleton(SPINENET, num_classes=80).state_dict()
    tensors = like({name: state[name] for name in state if "cls_convs" in name})
    with pytest.raises(WeightsError, match="the network has one tensor for both"):
        fit_native(tensors, SPINENET, num_classes=80)


def test_every_layout_is_recognised_as_itself_and_by_one_name() -> None:
    with torch.device("meta"):
        published = {
            "torchvision_resnet": resnet50(weights=None).state_dict(),
            "torchvision_vgg16": vgg16(weights=None).state_dict(),
            "mindspore_vgg16": {
                re.sub("^features", "layers", name): value
                for name, value in vgg16(weights=None).state_dict().items()
            },
            "torchvision_mobilenet_v2": mobilenet_v2(weights=None).state_dict(),
            "vgg16_reducedfc": vgg16_reducedfc(),
            "amdegroot_ssd": amdegroot_ssd300(21),
        }
    for name, state in published.items():
        assert [layout.name for layout in LAYOUTS if layout.fits(state)] == [name]
    names = [layout.name for layout in LAYOUTS]
    assert len(set(names)) == len(names)


def test_every_site_is_that_of_a_detector() -> None:
    assert {name for layout in LAYOUTS for name in layout.sites} <= set(DETECTORS)


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if one.classes], ids=lambda o: o.name)
@pytest.mark.parametrize("shape", [(), (0,), (2**40, 0), None], ids=str)
def test_rows_for_no_class_are_refused(layout: Layout, shape: tuple[int, ...] | None) -> None:
    assert layout.classes is not None
    if shape is None:  # The background alone.
        shape = (layout.classes.repeats * layout.classes.background,)
    tensors = dict.fromkeys(layout.landmarks, torch.zeros(1))
    tensors[layout.classes.counted_by] = torch.zeros(shape)
    (name, *_) = layout.sites
    variant = next(v for v, kind in variants().items() if kind is DETECTORS[name].config)
    with pytest.raises(WeightsError, match="has rows for no class of"):
        convert(tensors, variant_config(variant), layout=layout.name)


def test_own_names_with_rows_without_numbers_are_no_thousand_million_classes() -> None:
    tensors = dict(skeleton(MOBILENET, num_classes=3).state_dict())
    first = sorted(class_dependent(MOBILENET))[0]
    own = {name: torch.zeros(tensor.shape) for name, tensor in tensors.items()}
    own[first] = torch.zeros(2**40, 0)
    assert convert(own, MOBILENET, layout="native").num_classes == 3
