"""RetinaNet on SpineNet, the MindSpore port's recipe.

Sources: Lin et al., ICCV 2017; Du et al., CVPR 2020; yan-roo/SpineNet-Pytorch, whose state-dict
names these are (``backbone.``, ``bbox_head.``). With 80 classes 49S has 11,150,771 parameters, 49
28,313,140, 96 42,744,628, 143 66,729,268 and 190 163,173,892.

Deviations: a length is x2 - x1, without the pixel that the port and mmdetection 1 add in overlaps,
offsets and suppression; boxes are cut to the network's input rather than to what the image fills of
it, which mapping back to the original image does anyway, and suppressed there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from detectors.backbones import build_backbone
from detectors.backbones.layers import ConvNormAct, NormFactory, make_divisible
from detectors.backbones.spinenet import ACTIVATIONS, LEVELS, ActFactory
from detectors.boxes import clip_boxes, to_centers, to_corners
from detectors.coding import decode, encode
from detectors.losses import positive_smooth_l1, sigmoid_focal
from detectors.matching import match_by_images, match_with_band, take_boxes, with_a_slot
from detectors.priors import Level, grid_boxes
from detectors.pyramid import PyramidBackbone
from detectors.retinanet.config import AnchorConfig, RetinaNetConfig
from detectors.single_shot import DenseDetector, flatten_cells
from detectors.structures import Candidates, LossTerm, Targets

#: Score of every anchor and class before training (Lin et al., section 4.1).
PRIOR_SCORE = 0.01


class RetinaHead(nn.Module):
    """Offsets and class logits of every anchor, with normalisation of its own for each level.

    Convolutions are shared by the levels ("separate BN"). Channels of the predictors vary fastest
    by coordinate or class, then by anchor. State-dict names are those of mmdetection's
    RetinaSepBNHead, which SpineNet-Pytorch uses: a shared convolution appears once for each level,
    under ``cls_convs.<level>.<i>.conv``.

    Args:
        in_channels: of the maps.
        channels: of the towers.
        convs: convolutions of a tower.
        anchors: anchors of a cell.
        num_classes: foreground classes.
        norm: makes the normalisation layers.
        act: makes the activations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        convs: int,
        anchors: int,
        num_classes: int,
        norm: NormFactory,
        act: ActFactory,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes

        def towers() -> nn.ModuleList:
            shared = [
                nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=False)
                for i in range(convs)
            ]
            return nn.ModuleList(
                nn.ModuleList(ConvNormAct(conv, norm(channels), act()) for conv in shared)
                for _ in LEVELS
            )

        self.cls_convs = towers()
        self.reg_convs = towers()
        self.retina_cls = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        assert self.retina_cls.bias is not None
        nn.init.constant_(self.retina_cls.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Five maps (N, C, H, W) to offsets (N, A, 4) and class logits (N, A, K)."""
        loc, cls = [], []
        for x, cls_tower, reg_tower in zip(maps, self.cls_convs, self.reg_convs, strict=True):
            cls.append(self.retina_cls(_through(cls_tower, x)))
            loc.append(self.retina_reg(_through(reg_tower, x)))
        return flatten_cells(loc, 4), flatten_cells(cls, self.num_classes)


def _through(tower: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(tower, nn.ModuleList)
    for layer in tower:
        x = layer(x)
    return x


#: Offsets are not divided by anything.
_VARIANCES = (1.0, 1.0)

#: Largest factor on a side of an anchor, as a logarithm, and the smallest: 16 pixels become 1,000.
_LARGEST_LOG = math.log(1000 / 16)

#: Channels of a pyramid that is built on a backbone, at width 1.
_CHANNELS = 256

#: Stride of the finest map.
_FINEST = 8


def pyramid_levels(
    input_size: tuple[int, int], strides: Sequence[int], config: AnchorConfig
) -> list[Level]:
    """Anchors of every map, in pixels, ratio by ratio and within each from small to large.

    76,725 at 640 x 640 with the published nine to a cell.
    """
    levels = []
    for stride in strides:
        sides = [
            stride * config.base * 2 ** (k / config.scales_per_octave)
            for k in range(config.scales_per_octave)
        ]
        shapes = [
            (side / math.sqrt(ratio), side * math.sqrt(ratio))
            for ratio in config.ratios
            for side in sides
        ]
        rows, columns = (length // stride for length in input_size)
        levels.append(Level(rows, columns, stride, shapes, offset=config.offset))
    return levels


class RetinaNet(DenseDetector):
    """Dense prediction of offsets and classes at fixed anchors.

    Channel k of the class logits is class k of the data; there is none for background. The losses
    of a batch are divided by its number of positive anchors, or by 1 if it has none.

    Args:
        config: validated configuration.
        num_classes: foreground classes.

    Attributes:
        anchors: (A, 4) xyxy in pixels of the input, level by level.
    """

    anchors: Tensor
    anchor_centers: Tensor
    anchor_learnt: Tensor

    def __init__(self, config: RetinaNetConfig, *, num_classes: int) -> None:
        super().__init__(title=config.title, input_size=config.input_size, num_classes=num_classes)
        self.config = config
        backbone = build_backbone(config.backbone or config.own_backbone)
        if not (config.backbone or config.own_backbone).even:
            channels = make_divisible(_CHANNELS * config.width)
            backbone = PyramidBackbone(backbone, finest=_FINEST, channels=channels, extra="conv")
        self.backbone = backbone
        levels = pyramid_levels(config.input_size, backbone.strides, config.anchors)
        self.bbox_head = RetinaHead(
            backbone.channels[0],
            backbone.channels[0],
            convs=config.head_convs,
            anchors=len(levels[0].shapes),
            num_classes=num_classes,
            norm=partial(nn.BatchNorm2d, eps=config.bn_eps, momentum=config.bn_momentum),
            act=ACTIVATIONS[config.activation],
        )
        self.level_lengths = [v.rows * v.columns * len(v.shapes) for v in levels]
        centers = grid_boxes(levels)
        corners = to_corners(centers)
        height, width = config.input_size
        # The last pixel inside is at length - 1: MindSpore's CheckValid, which the port calls.
        limit = torch.tensor([width - 1, height - 1], dtype=corners.dtype)
        inside = (corners[:, :2] >= 0).all(1) & (corners[:, 2:] <= limit).all(1)
        learnt = torch.ones_like(inside) if config.loss.border == "learn" else inside
        self.register_buffer("anchors", corners.float(), persistent=False)
        self.register_buffer("anchor_centers", centers.float(), persistent=False)
        self.register_buffer("anchor_learnt", learnt.unsqueeze(0), persistent=False)

    def prior_boxes(self) -> Tensor:
        """(A, 4) float32 xyxy pixels of the input: the anchors, level by level."""
        return self.anchors

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to offsets and class logits, level by level."""
        loc, cls = self.bbox_head(self.backbone(x))
        return loc, cls

    def terms_of(self, raw: dict[str, Tensor], targets: Targets) -> dict[str, LossTerm]:
        """``cls`` and ``loc``; both count all positive anchors."""
        rule = self.config.loss
        wanted, labels, learnt = self.assign(targets)
        positive = labels >= 0
        count = positive.sum()
        each = sigmoid_focal(raw["cls"], labels, alpha=rule.alpha, gamma=rule.gamma)
        factors = self.class_factors(labels)
        if factors is not None:
            each = each * factors.unsqueeze(-1)
        cls = torch.where(learnt.unsqueeze(-1), each, 0.0).sum()
        loc = positive_smooth_l1(raw["loc"], wanted, positive, beta=rule.beta).sum()
        return {
            "cls": LossTerm(cls * rule.cls_weight, count),
            "loc": LossTerm(loc * rule.loc_weight, count),
        }

    @torch.no_grad()
    def loss_divisors(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Positive anchors, which follow from the boxes."""
        _, labels, _ = self.assign(targets)
        count = (labels >= 0).sum()
        return {"cls": count, "loc": count}

    def assign(self, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """What each anchor should predict.

        Returns:
            (N, A, 4) offsets, zeros where not positive; (N, A) class, -1 where not positive; and
            (N, A) whether the anchor counts at all.
        """
        rule = self.config.loss
        targets = with_a_slot(targets)
        found = match_by_images(
            targets.boxes,
            self.anchors,
            lambda iou, images: match_with_band(
                iou,
                targets.valid[images],
                torch.ones_like(self.anchor_learnt),
                positive_iou=rule.positive_iou,
                negative_iou=rule.negative_iou,
                claims="last_box" if rule.claims else "none",
                claim_iou=rule.claim_iou,
            ),
        )
        # A box may have claimed an anchor that is not learnt from, and is then left without.
        positive = found.positive & self.anchor_learnt
        boxes, labels = take_boxes(targets, found)
        offsets = encode(to_centers(boxes), self.anchor_centers, variances=_VARIANCES)
        return (
            torch.where(positive.unsqueeze(-1), offsets, 0.0),
            torch.where(positive, labels, -1),
            (found.positive | found.negative) & self.anchor_learnt,
        )

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Boxes (N, A, 4), cut to the input, and scores (N, A, K).

        Scores beyond ``candidates_per_level`` of a map are 0; as many as share the last place stay.
        """
        bounds = (-_LARGEST_LOG, _LARGEST_LOG)
        centers = decode(raw["loc"], self.anchor_centers, variances=_VARIANCES, log_ratios=bounds)
        boxes = clip_boxes(to_corners(centers), self.input_size)
        scores = raw["cls"].sigmoid()
        if self.config.candidates_per_level is not None:
            scores = self._best_of_each_level(scores, self.config.candidates_per_level)
        return Candidates(boxes=boxes, scores=scores)

    def _best_of_each_level(self, scores: Tensor, count: int) -> Tensor:
        """(N, A, K) scores, 0 for pairs that are not among the best ``count`` of their level."""
        parts = []
        for part in torch.split(scores, self.level_lengths, dim=1):
            if part.shape[1] * part.shape[2] > count:
                last = part.flatten(1).topk(count, dim=1).values[:, -1].view(-1, 1, 1)
                part = torch.where(part >= last, part, 0.0)
            parts.append(part)
        return torch.cat(parts, dim=1)
