"""Parts of Faster R-CNN against numbers worked out by hand and the published counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detectors.boxes import to_centers, to_corners
from detectors.coding import decode, encode
from detectors.faster_rcnn.anchors import level_sizes, pyramid_anchors
from detectors.faster_rcnn.config import AssignmentConfig, FasterRCNNConfig
from detectors.faster_rcnn.detector import Assignment, FasterRCNN, assign, draw
from detectors.faster_rcnn.heads import roi_levels
from detectors.structures import Targets


def rule(**changes: object) -> AssignmentConfig:
    fields = {
        "positive_iou": 0.7,
        "negative_iou": 0.3,
        "claims": "none",
        "claim_iou": 0.0,
        "samples": 4,
        "positive_fraction": 0.5,
    }
    return AssignmentConfig.model_validate({**fields, **changes})


def small(**changes: object) -> FasterRCNN:
    fields = {"input_size": (64, 96), "width": 0.125, "norm": "affine", **changes}
    torch.manual_seed(0)
    return FasterRCNN(FasterRCNNConfig.model_validate(fields), num_classes=3)


def test_published_parameter_counts() -> None:
    # Faster R-CNN card, section 1; the whole is counted in test_published.py.
    config = FasterRCNNConfig.model_validate({"input_size": (64, 64)})
    with torch.device("meta"):
        model = FasterRCNN(config, num_classes=80)
    assert sum(p.numel() for p in model.backbone.parameters()) == 26_852_416
    assert sum(p.numel() for p in model.rpn.parameters()) == 593_935
    assert sum(p.numel() for p in model.roi_heads.parameters()) == 14_310_805


def test_zoo_anchors() -> None:
    anchors = pyramid_anchors((768, 1280), legacy=True)
    assert level_sizes((768, 1280)) == [(192, 320), (96, 160), (48, 80), (24, 40), (12, 20)]
    assert anchors.shape == (245_520, 4)
    assert anchors[:3].tolist() == [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]
    # One cell to the right, then the first cell of the second row.
    assert anchors[3].tolist() == [-17, -9, 28, 12]
    assert anchors[3 * 320].tolist() == [-21, -5, 24, 16]
    # At stride 64 the centre is 31.5 and the square 512 long: -224 to 287.
    assert anchors[-240 * 3 + 1].tolist() == [-224, -224, 287, 287]


def test_anchors_across_the_border_are_not_learnt_from_in_the_zoo() -> None:
    for cross_border in (False, True):
        model = small(input_size=(128, 192), rpn={"cross_border": cross_border})
        x1, y1, x2, y2 = model.prior_boxes().unbind(1)
        inside = (x1 >= 0) & (y1 >= 0) & (x2 <= 191) & (y2 <= 127)
        assert 0 < inside.sum() < len(inside)
        assert torch.equal(model.canvases["128x192"].usable[0], inside | cross_border)


def test_level_edges() -> None:
    # Card 10: exact boxes of 111 go to P3 in the zoo and to P2 in torchvision; 223 to P4 and P3,
    # 447 to P5 and P4.
    sides = torch.tensor([10.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 2000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert roi_levels(boxes, legacy=True).tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    assert roi_levels(boxes, legacy=False).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("claims", ["none", "best_box"])
def test_assignment_equals_torchvisions(claims: str) -> None:
    torch.manual_seed(2)
    low = torch.rand(40, 2) * 60
    anchors = torch.cat([low, low + 10 + 20 * torch.rand(40, 2)], dim=1)
    boxes = torch.cat([anchors[:4] + 1, anchors[4:6] + torch.tensor([6.0, 0, 9, 3])])
    iou = box_iou(boxes, anchors)
    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=claims == "best_box")(iou)
    padded = torch.cat([iou, torch.full((2, 40), 0.9)])[None]
    valid = torch.tensor([[True] * 6 + [False] * 2])
    usable = torch.ones(1, 40, dtype=torch.bool)
    found = assign(padded, valid, usable, rule(claims=claims))
    assert found.positive[0].tolist() == (theirs >= 0).tolist()
    assert found.negative[0].tolist() == (theirs == -1).tolist()
    assert found.box[0][theirs >= 0].tolist() == theirs[theirs >= 0].tolist()
    assert (theirs >= 0).sum() >= (6 if claims == "best_box" else 3)


def test_later_boxes_overrule_claims_in_the_zoo() -> None:
    iou = torch.tensor([[[0.8, 0.4, 0.2, 0.0], [0.75, 0.1, 0.25, 0.75], [0.1, 0.2, 0.25, 0.1]]])
    valid, usable = torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    found = assign(iou, valid, usable, rule(claims="last_box", claim_iou=0.3))
    # Box 1 claims both anchors of its highest overlap, the first of them from box 0, which would
    # have it by IoU; the best overlap of box 2 is too small to claim.
    assert found.positive.tolist() == [[True, False, False, True]]
    assert found.box[0, [0, 3]].tolist() == [1, 1]
    assert found.negative.tolist() == [[False, False, True, False]]
    usable[0, 0] = False
    found = assign(iou, valid, usable, rule(claims="last_box", claim_iou=0.3))
    # Without the first anchor, the second is the best of box 0.
    assert found.positive.tolist() == [[False, True, False, True]]
    assert found.negative.tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("variant", "boxes", "expected"),
    [
        # The first proposal overlaps box 0 most (0.870), and is the best one of box 1 (0.762) too.
        ("faster_rcnn_mindspore", [[10, 10, 59, 59], [16, 10, 75, 59]], [1, None, 0, 1]),
        ("faster_rcnn_torchvision", [[10, 10, 59, 59], [16, 10, 75, 59]], [0, None, 0, 1]),
        # At one place, of two classes: the zoo keeps an example of each, torchvision of the first.
        ("faster_rcnn_mindspore", [[10, 10, 59, 59], [10, 10, 59, 59]], [1, None, 0, 1]),
        ("faster_rcnn_torchvision", [[10, 10, 59, 59], [10, 10, 59, 59]], [0, None, 0, 0]),
    ],
)
def test_boxes_join_the_proposals_after_claims_of_the_zoo_and_before_torchvisions_matching(
    variant: str, boxes: list[list[float]], expected: list[int | None], monkeypatch: Any
) -> None:
    """The zoo's bbox_assign_sample_stage2.py; torchvision's ``select_training_samples``."""
    model = small(variant=variant, input_size=(128, 128))
    proposals = torch.tensor([[[13.0, 10, 63, 59], [90, 90, 120, 120]]])
    scores = torch.tensor([[0.9, 0.8]])
    monkeypatch.setattr(model, "propose", lambda *args, **options: (proposals, scores))
    targets = Targets(
        boxes=torch.tensor([boxes], dtype=torch.float32),
        labels=torch.tensor([[0, 1]]),
        valid=torch.ones(1, 2, dtype=torch.bool),
    )
    priors = len(model.anchors)
    found = model._second_examples(
        torch.zeros(1, priors), torch.zeros(1, priors, 4), targets, model._canvas((128, 128))
    ).found
    got = [
        int(box) if positive else None
        for box, positive in zip(found.box[0], found.positive[0], strict=True)
    ]
    assert got == expected
    assert found.negative[0].tolist() == [False, True, False, False]


def test_draw_takes_positives_to_their_share_and_fills_up_with_negatives() -> None:
    positive = torch.zeros(3, 12, dtype=torch.bool)
    positive[0, :5], positive[1, 3] = True, True
    negative = torch.zeros(3, 12, dtype=torch.bool)
    negative[0, 6:], negative[1, 5:7], negative[2, 1:] = True, True, True
    found = Assignment(torch.zeros(3, 12, dtype=torch.int64), positive, negative)
    seen: Tensor = torch.zeros(3, 12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        drawn = draw(found, torch.rand(3, 12, generator=generator), rule(samples=6))
        assert drawn.positive.sum(1).tolist() == [3, 1, 0]
        assert drawn.valid.sum(1).tolist() == [6, 3, 6]
        for image in range(3):
            rows = drawn.rows[image, drawn.valid[image]]
            assert len(set(rows.tolist())) == len(rows)
            assert (positive | negative)[image, rows].all()
            seen[image, rows] += 1
    # All are equally likely: 3 of 5 positives, 3 of 6 negatives.
    assert torch.allclose(seen[0, :5] / 200, torch.tensor(0.6), atol=0.12)
    assert torch.allclose(seen[0, 6:] / 200, torch.tensor(0.5), atol=0.12)
    assert seen[0, 5] == 0


def test_legacy_offsets_by_hand() -> None:
    # Anchor of 10 x 20 pixels, box of 20 x 20 whose centre is 3 to the right.
    anchor = torch.tensor([[0.0, 0.0, 9.0, 19.0]])
    box = torch.tensor([[-2.0, 0.0, 17.0, 19.0]])
    offsets = encode(
        to_centers(box, plus_one=True), to_centers(anchor, plus_one=True), variances=(1.0, 1.0)
    )
    torch.testing.assert_close(offsets, torch.tensor([[0.3, 0.0, math.log(2), 0.0]]))
    centers = decode(offsets, to_centers(anchor, plus_one=True), variances=(1.0, 1.0))
    torch.testing.assert_close(to_corners(centers, plus_one=True), box)


def test_equal_seeds_draw_equal_examples() -> None:
    model = small(rpn={"assignment": {"samples": 8}}, head={"assignment": {"samples": 8}}).train()
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    targets = Targets(
        boxes=torch.tensor([[[8.0, 8, 40, 40]], [[30.0, 10, 90, 60]]]),
        labels=torch.tensor([[0], [2]]),
        valid=torch.ones(2, 1, dtype=torch.bool),
    )
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append([value.item() for value in model.loss(images, targets).values()])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_what_the_zoo_freezes() -> None:
    model = small().train()
    still = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(still), name
    assert any(name.endswith("layer2.0.bn1.weight") for name, _ in model.named_parameters())


def test_a_diverged_network_gives_a_loss_that_is_not_finite_and_no_crash() -> None:
    model = small().train()
    torch.nn.init.constant_(model.rpn.head.bbox_pred.bias, math.nan)
    targets = Targets(
        torch.tensor([[[8.0, 8, 40, 40]]]), torch.tensor([[0]]), torch.tensor([[True]])
    )
    losses = model.loss(torch.zeros(1, 3, 64, 96), targets)
    assert not torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": (100, 96)}, "multiple of 32"),
        ({"rpn": {"assignment": {"negative_iou": 0.8}}}, "negative_iou is 0.8, above"),
        ({"head": {"pooled": 3}}, "pooled"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FasterRCNNConfig.model_validate(changes)


def test_the_zoo_recipe_spells_out_the_preset() -> None:
    # Imports run downwards: the experiment is read as text here, not through its schema.
    folder = Path(__file__).parents[2] / "experiments"
    given = yaml.safe_load((folder / "faster_rcnn.yaml").read_text(encoding="utf-8"))["detector"]
    assert FasterRCNNConfig.model_validate(given) == FasterRCNNConfig.model_validate({})
    ascend = yaml.safe_load((folder / "faster_rcnn_npu.yaml").read_text(encoding="utf-8"))
    assert ascend["extends"] == "faster_rcnn.yaml"
    assert "detector" not in ascend
