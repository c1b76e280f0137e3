"""Faster R-CNN against torchvision's with the same weights, image by image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from detectors.faster_rcnn.config import FasterRCNNConfig
from detectors.faster_rcnn.detector import FasterRCNN
from detectors.postprocess import postprocess
from detectors.structures import Targets

HEIGHT, WIDTH, CLASSES = 128, 160, 3

#: Large enough to take every anchor and proposal, so that nothing is left to chance.
ALL = 1_000_000


def reference(**settings: Any) -> nn.Module:
    """torchvision's network; scores are spread out, so that rounding does not reorder them."""
    torch.manual_seed(5)
    network = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=1 + CLASSES,
        min_size=HEIGHT,
        max_size=WIDTH,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        **settings,
    )
    for module in network.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 0.5)
            module.running_var.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
    for layer in (network.rpn.head.cls_logits, network.roi_heads.box_predictor.cls_score):
        nn.init.normal_(layer.weight, std=0.2)
        nn.init.normal_(layer.bias, std=0.5)
    nn.init.normal_(network.rpn.head.bbox_pred.weight, std=0.1)
    nn.init.normal_(network.roi_heads.box_predictor.bbox_pred.weight, std=0.1)
    return network


def config_with(**rpn: Any) -> FasterRCNNConfig:
    return FasterRCNNConfig.model_validate(
        {
            "variant": "faster_rcnn_torchvision",
            "input_size": (HEIGHT, WIDTH),
            "norm": "batch",
            "frozen_parts": 0,
            "rpn": {"assignment": {"samples": ALL}, **rpn},
            "head": {"assignment": {"samples": ALL}},
        }
    )


def copy_of(network: nn.Module, **rpn: Any) -> FasterRCNN:
    mine = FasterRCNN(config_with(**rpn), num_classes=CLASSES)
    mine.load_state_dict(network.state_dict())
    return mine


def batch(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, 3, HEIGHT // 16, WIDTH // 16, generator=generator)
    return nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear") * 255


def targets_with(counts: list[int]) -> Targets:
    slots = max(1, *counts)
    low = torch.rand(len(counts), slots, 2) * torch.tensor([WIDTH, HEIGHT]) * 0.7
    size = (0.05 + 0.25 * torch.rand(len(counts), slots, 2)) * torch.tensor([WIDTH, HEIGHT])
    valid = torch.arange(slots) < torch.tensor(counts)[:, None]
    boxes = torch.cat([low, low + size], dim=-1) * valid.unsqueeze(-1)
    return Targets(boxes, torch.randint(0, CLASSES, valid.shape) * valid, valid)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, FasterRCNN]:
    network = reference(
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=200,
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=50,
    )
    few = {"before_test": 300, "after_test": 200, "before_train": 60, "after_train": 50}
    return network, copy_of(network, **few)


def test_state_dict_names_and_shapes_are_torchvisions(pair: tuple[nn.Module, FasterRCNN]) -> None:
    theirs, mine = (network.state_dict() for network in pair)
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}


def test_raw_outputs_are_torchvisions(pair: tuple[nn.Module, FasterRCNN]) -> None:
    theirs, mine = pair[0].eval(), pair[1].eval()
    images = batch()
    with torch.no_grad():
        raw = mine(images)
        prepared, _ = theirs.transform(list(images / 255))
        features = theirs.backbone(prepared.tensors)
        logits, offsets = concat_box_prediction_layers(*theirs.rpn.head(list(features.values())))
        anchors = theirs.rpn.anchor_generator(prepared, list(features.values()))
        proposals, _ = theirs.rpn(prepared, features)
        pooled = theirs.roi_heads.box_roi_pool(features, proposals, prepared.image_sizes)
        cls, loc = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
    assert isinstance(prepared, ImageList)
    assert prepared.image_sizes == [(HEIGHT, WIDTH)] * 2
    assert torch.equal(mine.prior_boxes(), anchors[0])
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(raw["objectness"].flatten(), logits.flatten(), **close)
    torch.testing.assert_close(raw["rpn_offsets"].flatten(0, 1), offsets, **close)
    found = raw["proposal_scores"] >= 0
    assert found.sum(1).tolist() == [len(p) for p in proposals]
    ours = {name: [] for name in ("proposals", "cls", "loc")}
    for image, wanted in enumerate(proposals):
        rows = torch.cdist(wanted, raw["proposals"][image][found[image]], p=torch.inf).argmin(1)
        # Neighbours whose scores differ by a rounding error may have changed places.
        assert rows.sort().values.tolist() == list(range(len(wanted)))
        assert (rows - torch.arange(len(wanted))).abs().max() <= 2
        for name, values in ours.items():
            values.append(raw[name][image][found[image]][rows])
    ours = {name: torch.cat(values) for name, values in ours.items()}
    torch.testing.assert_close(ours["proposals"], torch.cat(proposals), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(ours["cls"], cls, **close)
    torch.testing.assert_close(ours["loc"].flatten(1), loc, **close)


def test_detections_are_torchvisions(pair: tuple[nn.Module, FasterRCNN]) -> None:
    theirs, mine = pair[0].eval(), pair[1].eval()
    images = batch()
    with torch.no_grad():
        wanted = theirs(list(images / 255))
        found = postprocess(mine.decode(mine(images)), mine.config.postprocess)
    for want, got in zip(wanted, found, strict=True):
        assert len(got.scores) == len(want["scores"]) > 20
        assert got.labels.tolist() == (want["labels"] - 1).tolist()
        torch.testing.assert_close(got.scores, want["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.boxes, want["boxes"], rtol=1e-4, atol=1e-2)


def losses_of(pair: tuple[nn.Module, FasterRCNN], counts: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Ours and torchvision's, one after the other."""
    network, mine = pair
    # Statistics of a batch amplify the last digit of every sum on its way to the first layer.
    network.train().backbone.eval()
    mine.train().backbone.eval()
    torch.manual_seed(11)
    images, targets = batch(), targets_with(counts)
    listed = [
        {"boxes": boxes[valid], "labels": labels[valid] + 1}
        for boxes, labels, valid in zip(*targets, strict=True)
    ]
    want = network(list(images / 255), listed)
    got = mine.loss(images, targets)
    names = {
        "rpn_cls": "loss_objectness",
        "rpn_loc": "loss_rpn_box_reg",
        "cls": "loss_classifier",
        "loc": "loss_box_reg",
    }
    assert set(got) == set(names)
    return [(got[name], want[theirs]) for name, theirs in names.items()]


@pytest.mark.parametrize("counts", [[0, 0], [1, 0], [7, 3]], ids=str)
def test_losses_are_torchvisions(pair: tuple[nn.Module, FasterRCNN], counts: list[int]) -> None:
    with torch.no_grad():
        losses = losses_of(pair, counts)
    for got, want in losses:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    assert all(got > 0 for got, _ in losses) == (counts != [0, 0])


def test_gradients_are_torchvisions(pair: tuple[nn.Module, FasterRCNN]) -> None:
    network, mine = pair
    got, want = (sum(each) for each in zip(*losses_of(pair, [4, 2]), strict=True))
    got.backward()
    want.backward()
    for name, parameter in mine.named_parameters():
        wanted = network.get_parameter(name).grad
        scale = wanted.abs().max() + 1e-6
        torch.testing.assert_close(parameter.grad / scale, wanted / scale, rtol=0, atol=2e-3)
    for each in pair:
        each.zero_grad()


def test_first_released_names_load(pair: tuple[nn.Module, FasterRCNN]) -> None:
    network, _ = pair
    renamed = {
        name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for name, value in network.state_dict().items()
    }
    assert "rpn.head.conv.weight" in renamed
    mine = FasterRCNN(config_with(), num_classes=CLASSES)
    mine.load_state_dict(renamed)
    found = mine.state_dict()["rpn.head.conv.0.0.weight"]
    assert torch.equal(found, network.rpn.head.conv[0][0].weight)
