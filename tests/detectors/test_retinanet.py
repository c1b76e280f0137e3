from __future__ import annotations

import math
from typing import Any

import pytest
import spinenet_oracle
import torch
from pydantic import ValidationError
from small_detectors import losses_of_raw
from test_spinenet import stir
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, sigmoid_focal_loss

from detectors.matching import match_with_band
from detectors.registry import build_detector, variant_config
from detectors.retinanet.config import RetinaNetConfig
from detectors.retinanet.detector import RetinaNet
from detectors.structures import Targets

TINY: dict[str, Any] = {"width": 0.0625, "input_size": (256, 384)}


def build(variant: str = "49s", *, num_classes: int = 4, seed: int = 0, **fields: Any) -> RetinaNet:
    torch.manual_seed(seed)
    config = variant_config(f"retinanet_spinenet{variant}", **{**TINY, **fields})
    model = build_detector(config, num_classes=num_classes)
    assert isinstance(model, RetinaNet)
    return model


def published(variant: str) -> RetinaNet:
    with torch.device("meta"):
        model = build_detector(variant_config(f"retinanet_spinenet{variant}"), num_classes=80)
    assert isinstance(model, RetinaNet)
    return model


def boxes_in(size: tuple[int, int], images: int, count: int, *, seed: int = 0) -> Targets:
    """``count`` random boxes in each image but the last, which has none."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([size[1], size[0]])
    ends = torch.rand(images, count, 2, 2, generator=generator).sort(dim=2).values * limit
    boxes = ends.flatten(2)
    labels = torch.randint(0, 4, (images, count), generator=generator)
    valid = torch.ones(images, count, dtype=torch.bool)
    valid[-1] = False
    return Targets(boxes, labels, valid)


@pytest.mark.parametrize(
    ("variant", "parameters", "anchors"),
    # Counted in SpineNet-Pytorch's networks; anchors are 9 for each cell of five maps.
    [("49s", 2_061_556, 76_725), ("49", 6_481_652, 76_725), ("190", 36_586_228, 306_900)],
)
def test_size_of_the_head(variant: str, parameters: int, anchors: int) -> None:
    model = published(variant)
    assert sum(p.numel() for p in model.bbox_head.parameters()) == parameters
    assert model.anchors.shape == (anchors, 4)


def test_names_and_shapes_of_the_published_head() -> None:
    state = build(num_classes=7, width=1.0, input_size=(128, 128)).state_dict()
    shapes = {n: tuple(v.shape) for n, v in state.items() if n.startswith("bbox_head.")}
    ends = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    towers = [
        f"bbox_head.{tower}_convs.{level}.{index}"
        for tower in ("cls", "reg")
        for level in range(5)
        for index in range(4)
    ]
    names = {f"{tower}.conv.weight" for tower in towers}
    names |= {f"{tower}.bn.{end}" for tower in towers for end in ends}
    names |= {f"bbox_head.retina_{k}.{end}" for k in ("cls", "reg") for end in ("weight", "bias")}
    assert set(shapes) == names
    assert shapes["bbox_head.cls_convs.4.3.conv.weight"] == (128, 128, 3, 3)
    assert shapes["bbox_head.retina_cls.weight"] == (63, 128, 3, 3)
    assert shapes["bbox_head.retina_reg.weight"] == (36, 128, 3, 3)
    assert {name.split(".")[0] for name in state} == {"backbone", "bbox_head"}
    # One convolution for five levels, each with a normalisation of its own.
    shared = {state[f"bbox_head.reg_convs.{level}.2.conv.weight"].data_ptr() for level in range(5)}
    own = {state[f"bbox_head.reg_convs.{level}.2.bn.weight"].data_ptr() for level in range(5)}
    assert (len(shared), len(own)) == (1, 5)


def test_initial_scores_and_weights_of_the_head() -> None:
    head = build(width=1.0, input_size=(128, 128)).bbox_head
    assert head.retina_cls.bias is not None
    assert head.retina_reg.bias is not None
    torch.testing.assert_close(
        head.retina_cls.bias, torch.full_like(head.retina_cls.bias, -4.595119850)
    )
    assert not head.retina_reg.bias.any()
    convs = [head.cls_convs[0][3].conv, head.reg_convs[2][0].conv, head.retina_reg, head.retina_cls]
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.03)


def test_anchors_by_hand() -> None:
    anchors = build().config.anchors
    assert (anchors.base, anchors.ratios, anchors.offset) == (3.0, (0.5, 1.0, 2.0), 0.0)
    model = build(input_size=(128, 256))
    # Stride 8: squares of 24, 24 * 2**(1/3), 24 * 2**(2/3) pixels; height / width 1/2, 1, 2.
    sides = [24.0, 30.238, 38.098]
    shapes = [(s * math.sqrt(2), s / math.sqrt(2)) for s in sides]
    shapes += [(s, s) for s in sides] + [(s / math.sqrt(2), s * math.sqrt(2)) for s in sides]
    want = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in shapes])
    torch.testing.assert_close(model.anchors[:9], want, rtol=0, atol=2e-3)
    step = torch.tensor([8.0, 0, 8, 0])
    torch.testing.assert_close(model.anchors[9:18], want + step, rtol=0, atol=2e-3)
    # The second row of 32 cells; then the coarsest map, of 1 x 2 cells and 16 times the stride.
    torch.testing.assert_close(model.anchors[9 * 32][:2], want[0][:2] + torch.tensor([0.0, 8.0]))
    torch.testing.assert_close(model.anchors[-18:-9], want * 16, rtol=0, atol=4e-2)
    torch.testing.assert_close(
        model.anchors[-9:], want * 16 + torch.tensor([128.0, 0, 128, 0]), rtol=0, atol=4e-2
    )


def test_anchors_of_the_larger_networks_and_of_the_other_convention() -> None:
    for variant, base in (("49", 3), ("96", 3), ("143", 4), ("190", 4)):
        config = variant_config(f"retinanet_spinenet{variant}")
        assert isinstance(config, RetinaNetConfig)
        assert config.anchors.base == base
    middle = build(anchors={"offset": 0.5}).anchors - build().anchors
    # Half a stride: 4 pixels on the finest map, 64 on the coarsest.
    torch.testing.assert_close(middle[0], torch.full((4,), 4.0))
    torch.testing.assert_close(middle[-1], torch.full((4,), 64.0))


def test_outputs_agree_with_an_independent_reading() -> None:
    model = build("190", input_size=(128, 256))
    stir(model)
    model = model.double().eval()
    images = torch.randint(0, 256, (2, 3, 128, 256), dtype=torch.uint8)
    state = model.state_dict()
    parts = {
        name: {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(name)}
        for name in ("backbone", "bbox_head")
    }
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = (images.double() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        raw = model(images)
        maps = spinenet_oracle.backbone(parts["backbone"], x)
        loc, cls = spinenet_oracle.head(parts["bbox_head"], maps, classes=4)
    assert raw["loc"].shape == (2, len(model.anchors), 4)
    assert loc.std() > 1e-3
    torch.testing.assert_close(raw["loc"].double(), loc, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(raw["cls"].double(), cls, rtol=1e-5, atol=1e-6)


def assigned_by_loop(boxes: Tensor, anchors: Tensor, *, least: float = 1e-5) -> list[int]:
    """Box of each anchor or -1, the published way: one box after the other."""
    iou = box_iou(boxes, anchors)
    best, which = iou.max(dim=0)
    found = [int(w) if b >= 0.5 else -1 for b, w in zip(best, which, strict=True)]
    for index, row in enumerate(iou):
        if row.max() >= least:
            for anchor in (row == row.max()).nonzero().flatten().tolist():
                found[anchor] = index
    return found


@pytest.mark.parametrize("border", ["learn", "ignore"])
def test_assignment_agrees_with_a_loop(border: str) -> None:
    model = build(loss={"border": border}, anchors={"base": 1.5})
    targets = boxes_in(model.input_size, 3, 12)
    # Symmetry makes several anchors the best of a box; a tiny box meets none that is positive.
    targets.boxes[0, :3] = torch.tensor(
        [[60.0, 60, 68, 68], [100, 100, 103, 102], [96, 32, 160, 96]]
    )
    targets.boxes[0, 3] = targets.boxes[0, 2] + 1
    offsets, labels, learnt = model.assign(targets)
    a = model.anchors
    inside = (a[:, 0] >= 0) & (a[:, 1] >= 0) & (a[:, 2] <= 383) & (a[:, 3] <= 255)
    counted = inside if border == "ignore" else torch.ones_like(inside)
    assert torch.equal(learnt, counted.expand(3, -1))
    assert 0 < inside.sum() < len(a)
    positives = 0
    for image in range(3):
        count = int(targets.valid[image].sum())
        found = assigned_by_loop(targets.boxes[image, :count], a) if count else [-1] * len(a)
        want = [int(targets.labels[image, f]) if f >= 0 else -1 for f in found]
        want = [w if c else -1 for w, c in zip(want, counted.tolist(), strict=True)]
        assert labels[image].tolist() == want
        rows = [i for i, w in enumerate(want) if w >= 0]
        positives += len(rows)
        if rows:
            reference = torch.stack([targets.boxes[image, found[i]] for i in rows])
            (encoded,) = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode([reference], [a[rows]])
            torch.testing.assert_close(offsets[image, rows], encoded, rtol=1e-4, atol=1e-5)
        assert not offsets[image, labels[image] < 0].any()
    assert positives > 12


def test_torchvision_gives_claimed_anchors_to_their_own_best_box_instead() -> None:
    iou = torch.tensor([[0.9, 0.2, 0.0, 0.45], [0.8, 0.1, 0.0, 0.3], [0.0, 0.0, 0.3, 0.0]])
    rule = {"positive_iou": 0.5, "negative_iou": 0.4, "claim_iou": 1e-5}
    arguments = iou[None], torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    theirs = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
    assert theirs.tolist() == [0, -1, 2, -2]
    for claims, boxes in (("best_box", [0, 2]), ("last_box", [1, 2])):
        found = match_with_band(*arguments, claims=claims, **rule)
        assert found.positive.tolist() == [[True, False, True, False]]
        assert found.negative.tolist() == [[False, True, False, False]]
        assert found.box[found.positive].tolist() == boxes


@pytest.mark.parametrize("border", ["learn", "ignore"])
def test_losses_agree_with_an_independent_formulation(border: str) -> None:
    model = build(loss={"border": border, "cls_weight": 2.0, "loc_weight": 3.0})
    targets = boxes_in(model.input_size, 2, 6, seed=5)
    generator = torch.Generator().manual_seed(7)
    shape = (2, len(model.anchors))
    raw = {
        "loc": torch.randn(*shape, 4, generator=generator).requires_grad_(),
        "cls": torch.randn(*shape, 4, generator=generator).mul(4).requires_grad_(),
    }
    losses = losses_of_raw(model, raw, targets)
    offsets, labels, learnt = model.assign(targets)
    positive = labels >= 0
    count = positive.sum()
    assert count > 6
    onehot = F.one_hot(labels + 1, 5)[..., 1:].double()
    doubles = {name: value.detach().double().requires_grad_() for name, value in raw.items()}
    focal = sigmoid_focal_loss(doubles["cls"], onehot, alpha=0.25, gamma=2.0)
    cls = 2.0 * focal[learnt].sum() / count
    d = (doubles["loc"] - offsets.double())[positive].abs()
    loc = 3.0 * torch.where(d < 0.11, 0.5 * d * d / 0.11, d - 0.055).sum() / count
    torch.testing.assert_close(losses["cls"].double(), cls, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loc"].double(), loc, rtol=1e-5, atol=0)
    (losses["cls"] + losses["loc"]).backward()
    (cls + loc).backward()
    for name, value in raw.items():
        torch.testing.assert_close(value.grad.double(), doubles[name].grad, rtol=1e-4, atol=1e-7)


def test_without_boxes_the_loss_is_that_of_the_negatives_alone() -> None:
    model = build(loss={"border": "learn"})
    targets = boxes_in(model.input_size, 1, 1)
    raw = {"loc": torch.ones(1, len(model.anchors), 4)}
    raw["cls"] = torch.zeros(1, len(model.anchors), 4)
    losses = losses_of_raw(model, raw, targets)
    assert losses["loc"] == 0
    # Score 1/2 everywhere: (1 - alpha) * (1/2)**2 * ln 2 for each anchor and class, over 1.
    want = 0.75 * 0.25 * math.log(2) * 4 * len(model.anchors)
    assert losses["cls"].item() == pytest.approx(want, rel=1e-5)


def test_decoding_agrees_with_torchvision_and_is_bounded_on_both_sides() -> None:
    model = build(candidates_per_level=None)
    generator = torch.Generator().manual_seed(1)
    raw = {
        "loc": torch.randn(1, len(model.anchors), 4, generator=generator) * 0.5,
        "cls": torch.randn(1, len(model.anchors), 4, generator=generator),
    }
    raw["loc"][0, 0, 2:] = 9.0
    boxes, scores = model.decode(raw)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    want = coder.decode_single(raw["loc"][0], model.anchors)
    want[:, 0::2].clamp_(0, 384)
    want[:, 1::2].clamp_(0, 256)
    torch.testing.assert_close(boxes[0], want, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(scores, raw["cls"].sigmoid())
    middle = len(model.anchors) // 3
    raw["loc"][0, middle] = torch.tensor([0.0, 0, -9, -9])
    small, anchor = model.decode(raw).boxes[0, middle], model.anchors[middle]
    torch.testing.assert_close(
        small[2:] - small[:2], (anchor[2:] - anchor[:2]) * 16 / 1000, rtol=1e-3, atol=1e-3
    )


def test_each_level_hands_on_its_best_pairs() -> None:
    model = build(input_size=(128, 128), candidates_per_level=5)
    generator = torch.Generator().manual_seed(2)
    cls = torch.randn(2, len(model.anchors), 4, generator=generator)
    scores = model.decode({"loc": torch.zeros(2, len(model.anchors), 4), "cls": cls}).scores
    lengths = [9 * (128 // stride) ** 2 for stride in (8, 16, 32, 64, 128)]
    for image in range(2):
        parts = zip(cls[image].split(lengths), scores[image].split(lengths), strict=True)
        for before, after in parts:
            best = before.sigmoid().flatten().sort(descending=True).values[:5]
            kept = after.flatten()[after.flatten() > 0].sort(descending=True).values
            torch.testing.assert_close(kept, best)


@pytest.mark.parametrize("size", [(640, 704), (64, 64), (192, 192), (0, 128)])
def test_sizes_must_be_multiples_of_128(size: tuple[int, int]) -> None:
    with pytest.raises(ValidationError, match="128"):
        RetinaNetConfig.model_validate({"name": "retinanet", "input_size": size})


def test_published_recipes_and_what_is_laid_over_them() -> None:
    config = RetinaNetConfig.model_validate({"name": "retinanet"})
    assert (config.variant, config.arch, config.input_size) == (
        "retinanet_spinenet49",
        "49",
        (640, 640),
    )
    tree = config.model_dump()
    assert tree["loss"] == {
        "positive_iou": 0.5,
        "negative_iou": 0.5,
        "claims": True,
        "claim_iou": 1e-5,
        "border": "ignore",
        "alpha": 0.25,
        "gamma": 2.0,
        "beta": 0.11,
        "cls_weight": 1.0,
        "loc_weight": 1.0,
    }
    assert (tree["bn_momentum"], tree["bn_eps"]) == (0.01, 1e-3)
    assert (tree["endpoints"], tree["activation"], tree["stochastic_depth"]) == (
        "linear",
        "relu",
        0,
    )
    post = tree["postprocess"]
    assert (post["score_threshold"], post["iou_threshold"]) == (0.05, 0.5)
    assert (post["nms"], post["max_per_image"], post["plus_one"]) == ("hard", 100, False)
    large = variant_config("retinanet_spinenet190", anchors={"offset": 0.5}, width=0.5)
    assert isinstance(large, RetinaNetConfig)
    assert (large.head_convs, large.anchors.base, large.anchors.offset) == (7, 4.0, 0.5)
    assert large.title == "retinanet_spinenet190 at width 0.5"


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="one anchor would be both"):
        variant_config("retinanet_spinenet49", loss={"positive_iou": 0.4})
