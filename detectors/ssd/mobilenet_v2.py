"""SSD300 on MobileNetV2, the MindSpore model zoo's network.

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

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from detectors.backbones.layers import (
    NormFactory,
    SameConv2d,
    init_truncated_normal,
    make_divisible,
)
from detectors.backbones.mobilenet_v2 import InvertedResidual, MobileNetV2
from detectors.base import IMAGENET_MEAN, IMAGENET_STD
from detectors.objectives import make_objective
from detectors.priors import grid_boxes, mindspore_ssd300_levels
from detectors.single_shot import SingleShot, flatten_cells
from detectors.ssd.config import SSDConfig

#: Output channels and hidden / input channels of the extra layers, each of stride 2.
_EXTRAS = ((512, 0.2), (256, 0.25), (256, 0.5), (128, 0.25))


def _head(in_channels: int, out_channels: int, *, norm: NormFactory) -> nn.Sequential:
    """Depthwise-separable predictor; only the last convolution has a bias."""
    return nn.Sequential(
        SameConv2d(in_channels, in_channels, 3, groups=in_channels, bias=False),
        norm(in_channels),
        nn.ReLU6(inplace=True),
        SameConv2d(in_channels, out_channels, 1),
    )


class MultiBox(nn.Module):
    """Box and class predictors of every feature map.

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
        loc = [head(x) for head, x in zip(self.multi_loc_layers, maps, strict=True)]
        cls = [head(x) for head, x in zip(self.multi_cls_layers, maps, strict=True)]
        return flatten_cells(loc, 4), flatten_cells(cls, self.channels)


class SSDMobileNetV2(SingleShot):
    """SSD300-MobileNetV2, (N, 3, 300, 300) to 1,917 priors.

    Args:
        config: validated configuration of a MobileNetV2 variant.
        num_classes: foreground classes.
    """

    y_first: ClassVar[bool] = True

    def __init__(self, config: SSDConfig, *, num_classes: int) -> None:
        levels = mindspore_ssd300_levels()
        super().__init__(
            size=300,
            num_classes=num_classes,
            pixel_mean=IMAGENET_MEAN,
            pixel_std=IMAGENET_STD,
            priors=grid_boxes(levels),
            objective=make_objective(config.loss),
            title=config.title,
        )
        assert config.bn_eps is not None, "a variant with batch normalisation"
        norm = partial(nn.BatchNorm2d, eps=config.bn_eps, momentum=config.bn_momentum)
        self.backbone = MobileNetV2(width=config.width, norm=norm)
        channels = list(self.backbone.channels[-2:])
        self.multi_residual = nn.ModuleList()
        for base, ratio in _EXTRAS:
            out_channels, hidden = make_divisible(base * config.width), round(channels[-1] * ratio)
            self.multi_residual.append(
                InvertedResidual(
                    channels[-1], hidden, out_channels, stride=2, norm=norm, last_relu=True
                )
            )
            channels.append(out_channels)
        boxes_per_cell = [len(level.shapes) for level in levels]
        self.multi_box = MultiBox(channels, boxes_per_cell, channels=1 + num_classes, norm=norm)
        init_truncated_normal(self)
        heads = self.multi_box.multi_cls_layers
        self.objective.begin([head.get_parameter("3.bias") for head in heads], 1 + num_classes)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to offsets ``dcy, dcx, dh, dw`` and class logits."""
        maps = list(self.backbone(x)[-2:])
        for extra in self.multi_residual:
            maps.append(extra(maps[-1]))
        loc, cls = self.multi_box(maps)
        return loc, cls
