"""The learnt parts behind the pyramid, named as in torchvision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.layers import Backbone
from detectors.faster_rcnn.anchors import RATIOS, ROI_LEVELS
from detectors.pyramid import PyramidBackbone
from detectors.roi_align import pyramid_roi_align

#: Cells of a pooled proposal and sample points per cell, in each direction.
POOLED = 7
_SAMPLES = 2


class RPNHead(nn.Module):
    """Objectness and offsets of the anchors of every cell, by the same layers at all levels.

    The name of its first layer in torchvision's first released checkpoints, ``conv.weight``, is
    understood on loading.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))
        self.cls_logits = nn.Conv2d(channels, len(RATIOS), 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for layer in (conv, self.cls_logits, self.bbox_pred):
            _init_normal(layer)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for kind in ("weight", "bias"):
            old = f"{prefix}conv.{kind}"
            if old in state_dict:
                state_dict[f"{prefix}conv.0.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Five maps to logits (N, A) and offsets (N, A, 4), in the order of the anchors."""
        hidden = [self.conv(x) for x in maps]
        logits = [self.cls_logits(x).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        offsets = [self.bbox_pred(x).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        return (
            torch.cat(logits, dim=1).float(),
            torch.cat(offsets, dim=1).unflatten(1, (-1, 4)).float(),  # type: ignore[no-untyped-call]
        )


class RPN(nn.Module):
    """Holds the head under torchvision's name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.head = RPNHead(channels)


class BoxHead(nn.Module):
    """Two fully connected layers over a pooled proposal."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * POOLED * POOLED, hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, pooled: Tensor) -> Tensor:
        """(N, R, C, 7, 7) to (N, R, hidden)."""
        return F.relu(self.fc7(F.relu(self.fc6(pooled.flatten(2)))))


class BoxPredictor(nn.Module):
    """Class logits and offsets of a box for every class, background first."""

    def __init__(self, hidden: int, channels: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, channels)
        self.bbox_pred = nn.Linear(hidden, channels * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, R, hidden) to logits (N, R, 1 + K) and offsets (N, R, 1 + K, 4)."""
        logits = self.cls_score(x).float()
        return logits, self.bbox_pred(x).float().view(*logits.shape, 4)


class RoIHeads(nn.Module):
    """The second stage: pool each proposal from its level, then classify and refine it.

    Args:
        channels: of the pyramid.
        strides: of its maps.
        hidden: of the fully connected layers.
        classes: class channels, background included.
        aligned, end_pixel: see :func:`detectors.roi_align.pyramid_roi_align`.
        legacy: whether a proposal is a pixel longer than its corners are apart.
    """

    def __init__(
        self,
        *,
        channels: int,
        strides: Sequence[int],
        hidden: int,
        classes: int,
        aligned: bool,
        end_pixel: bool,
        legacy: bool,
    ) -> None:
        super().__init__()
        self.box_head = BoxHead(channels, hidden)
        self.box_predictor = BoxPredictor(hidden, classes)
        self.strides = strides[:ROI_LEVELS]
        self.aligned = aligned
        self.end_pixel = end_pixel
        self.legacy = legacy

    def forward(
        self, maps: Sequence[Tensor], boxes: Tensor, layout: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Maps and proposals (N, R, 4) to logits (N, R, 1 + K) and offsets (N, R, 1 + K, 4).

        ``layout`` is that of :func:`detectors.roi_align.pyramid_layout` for the maps.
        """
        pooled = pyramid_roi_align(
            maps[:ROI_LEVELS],
            boxes,
            roi_levels(boxes, legacy=self.legacy, finest=self.strides[0]),
            strides=self.strides,
            size=POOLED,
            samples=_SAMPLES,
            aligned=self.aligned,
            end_pixel=self.end_pixel,
            layout=layout,
        )
        logits, offsets = self.box_predictor(self.box_head(pooled))
        return logits, offsets


def roi_levels(boxes: Tensor, *, legacy: bool, finest: int = 4) -> Tensor:
    """(...) int64 level of each box (..., 4): a box of 224 pixels is pooled from stride 16.

    Lin et al., equation 1; level 0 has the stride ``finest``. The two families differ in the
    pixel, and in the side of the logarithm their guard against rounding stands on.
    """
    size = boxes[..., 2:] - boxes[..., :2]
    if legacy:
        scale = (size + 1.0).prod(-1).sqrt()
        level = (scale / 56.0 + 1e-6).log2().floor()
    else:
        level = (4.0 + (size.prod(-1).sqrt() / 224.0).log2() + 1e-6).floor() - 2.0
    return (level - math.log2(finest / 4)).clamp(0, ROI_LEVELS - 1).long()


def init_mindspore(backbone: Backbone, heads: RoIHeads) -> None:
    """Draw pyramid and second stage as the MindSpore model zoo does; torchvision's are in place."""
    pyramid = backbone.fpn.modules() if isinstance(backbone, PyramidBackbone) else ()
    for module in [*pyramid, *heads.box_head.modules()]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    for layer in (heads.box_predictor.cls_score, heads.box_predictor.bbox_pred):
        _init_normal(layer)


def _init_normal(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
