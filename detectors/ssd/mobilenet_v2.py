"""SSD300 on MobileNetV2, the MindSpore model zoo's network (Liu et al., ECCV 2016).

Source: mindspore-ai/models, official/cv/SSD. At width 1 and 80 classes it has 4,393,461 trainable
parameters in 255 tensors and 1,917 priors.

Released weights map onto the state dict by renaming alone: drop a leading ``network.`` and turn a
final ``gamma``, ``beta``, ``moving_mean``, ``moving_variance`` into ``weight``, ``bias``,
``running_mean``, ``running_var``. Shapes are equal, depthwise weights included. Inside, everything
is y first as there: priors are ``cy, cx, h, w`` relative to the input size, raw box offsets
``dcy, dcx, dh, dw``. The contract outside is xyxy in pixels.

Deviation: a batch without a single positive prior is divided by 1, where the reference divides
by 0.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from detectors.backbones.layers import SameConv2d, make_divisible
from detectors.backbones.mobilenet_v2 import (
    InvertedResidual,
    MobileNetV2,
    NormFactory,
    init_truncated_normal,
)
from detectors.base import Candidates, Detector, Targets
from detectors.boxes import pairwise_iou, swap_axes, to_centers, to_corners
from detectors.coding import decode, encode
from detectors.losses import positive_smooth_l1, sigmoid_focal
from detectors.matching import match_first_claim, take_boxes, with_a_slot
from detectors.priors import grid_boxes, mindspore_ssd300_levels
from detectors.ssd.config import FocalLossConfig, SSDConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Output channels and hidden / input channels of the extra layers, each of stride 2.
_EXTRAS = ((512, 0.2), (256, 0.25), (256, 0.5), (128, 0.25))

#: ImageNet statistics on the 0..255 scale, RGB.
_PIXEL_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
_PIXEL_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


def _head(in_channels: int, out_channels: int, *, norm: NormFactory) -> nn.Sequential:
    """Depthwise-separable predictor; only the last convolution has a bias."""
    return nn.Sequential(
        SameConv2d(in_channels, in_channels, 3, groups=in_channels, bias=False),
        norm(in_channels),
        nn.ReLU6(inplace=True),
        SameConv2d(in_channels, out_channels, 1),
    )


class MultiBox(nn.Module):
    """Box and class predictors of every feature map, flattened cell by cell.

    Args:
        in_channels: channels of each map.
        boxes_per_cell: priors per cell of each map.
        channels: class channels, background included.
        norm: makes the normalisation layers.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        boxes_per_cell: Sequence[int],
        *,
        channels: int,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        self.channels = channels
        pairs = list(zip(in_channels, boxes_per_cell, strict=True))
        self.multi_loc_layers = nn.ModuleList(_head(c, 4 * a, norm=norm) for c, a in pairs)
        self.multi_cls_layers = nn.ModuleList(_head(c, channels * a, norm=norm) for c, a in pairs)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps (N, C, H, W) to offsets (N, A, 4) and class logits (N, A, channels)."""

        def rows(layer: nn.Module, features: Tensor, length: int) -> Tensor:
            out: Tensor = layer(features)
            return out.permute(0, 2, 3, 1).reshape(len(out), -1, length)

        loc = [rows(m, x, 4) for m, x in zip(self.multi_loc_layers, maps, strict=True)]
        cls = [rows(m, x, self.channels) for m, x in zip(self.multi_cls_layers, maps, strict=True)]
        return torch.cat(loc, dim=1), torch.cat(cls, dim=1)


class SSDMobileNetV2(Detector):
    """SSD300-MobileNetV2 with sigmoid focal loss.

    Channel 0 of the class logits is background, with a sigmoid of its own; class k of the data is
    channel k + 1.

    Args:
        num_classes: foreground classes.
        width: factor on every channel count.
        bn_eps, bn_momentum: constants of batch normalisation, torch's convention.
        loss: focal loss and matching.
        title: what the network calls itself.
    """

    priors: Tensor
    prior_corners: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        width: float,
        bn_eps: float,
        bn_momentum: float,
        loss: FocalLossConfig,
        title: str,
    ) -> None:
        super().__init__(
            input_size=(300, 300),
            num_classes=num_classes,
            pixel_mean=_PIXEL_MEAN,
            pixel_std=_PIXEL_STD,
        )
        self.title = title
        self.loss_config = loss
        norm = partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)
        self.backbone = MobileNetV2(width=width, norm=norm)
        channels = list(self.backbone.channels)
        self.multi_residual = nn.ModuleList()
        for base, ratio in _EXTRAS:
            out_channels, hidden = make_divisible(base * width), round(channels[-1] * ratio)
            self.multi_residual.append(
                InvertedResidual(
                    channels[-1], hidden, out_channels, stride=2, norm=norm, last_relu=True
                )
            )
            channels.append(out_channels)
        levels = mindspore_ssd300_levels()
        self.multi_box = MultiBox(
            channels,
            [len(level.shapes) for level in levels],
            channels=num_classes + 1,
            norm=norm,
        )
        init_truncated_normal(self)
        boxes = grid_boxes(levels)
        self.register_buffer("priors", swap_axes(boxes).float(), persistent=False)
        self.register_buffer("prior_corners", to_corners(boxes).float(), persistent=False)

    @classmethod
    def from_config(cls, config: SSDConfig, *, num_classes: int) -> SSDMobileNetV2:
        """Build from the validated configuration."""
        return cls(
            num_classes=num_classes,
            width=config.width,
            bn_eps=config.bn_eps,
            bn_momentum=config.bn_momentum,
            loss=config.loss,
            title=config.title,
        )

    def extra_repr(self) -> str:
        """Title and number of classes, shown at the top of the printed module."""
        return f"{self.title}, num_classes={self.num_classes}"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            images: (N, 3, 300, 300) RGB on the 0..255 scale, uint8 or float.

        Returns:
            ``loc`` (N, 1917, 4) offsets ``dcy, dcx, dh, dw`` and ``cls`` (N, 1917, 1 + K) logits,
            float32 whatever the precision inside.

        Raises:
            ValueError: images of another size, for which the priors would not fit.
        """
        if images.shape[-2:] != self.input_size:
            raise ValueError(
                f"{self.title} takes images of 300 x 300 pixels, got a batch of shape "
                f"{tuple(images.shape)}; resize before the network"
            )
        maps = list(self.backbone(self.normalize(images)))
        for extra in self.multi_residual:
            maps.append(extra(maps[-1]))
        loc, cls = self.multi_box(maps)
        return {"loc": loc.float(), "cls": cls.float()}

    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """``cls`` and ``loc``, each summed over the batch and divided by its positive priors."""
        return self.losses_of(self(images), targets)

    def losses_of(self, raw: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The losses of :meth:`loss` for raw outputs already computed."""
        settings = self.loss_config
        wanted, labels = self.assign(targets)
        positive = labels > 0
        count = positive.sum().clamp(min=1)
        loc = positive_smooth_l1(raw["loc"], wanted, positive).sum()
        if settings.loc_reduction == "mean":
            loc = loc / 4
        cls = sigmoid_focal(raw["cls"], labels, alpha=settings.alpha, gamma=settings.gamma).sum()
        return {"cls": cls / count, "loc": loc / count}

    def assign(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """What each prior should predict.

        Returns:
            (N, A, 4) offsets, zeros where not positive, and (N, A) channel, 0 where not positive.
        """
        targets = with_a_slot(targets)
        relative = targets._replace(boxes=targets.boxes / self._scale(targets.boxes))
        iou = pairwise_iou(relative.boxes, self.prior_corners)
        match = match_first_claim(iou, targets.valid, threshold=self.loss_config.match_threshold)
        boxes, labels = take_boxes(relative, match)
        offsets = encode(swap_axes(to_centers(boxes)), self.priors)
        return (
            torch.where(match.positive.unsqueeze(-1), offsets, 0.0),
            torch.where(match.positive, labels + 1, 0),
        )

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Boxes (N, 1917, 4), cut to the image, and sigmoid scores (N, 1917, K)."""
        corners = to_corners(decode(raw["loc"], self.priors)).clamp(0, 1)
        boxes = swap_axes(corners)
        return Candidates(boxes=boxes * self._scale(boxes), scores=raw["cls"][..., 1:].sigmoid())

    def _scale(self, like: Tensor) -> Tensor:
        """(4,) input width and height, twice."""
        height, width = self.input_size
        return like.new_tensor([width, height, width, height])
