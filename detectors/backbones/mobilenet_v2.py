"""MobileNetV2 (Sandler et al., CVPR 2018) as the MindSpore model zoo cuts it up for SSD.

Module names are those of mindspore-ai/models, official/cv/SSD/src/ssd.py.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.config import MobileNetV2Config
from detectors.backbones.layers import Backbone, NormFactory, SameConv2d, make_divisible

#: Expansion, channels, repeats and first stride of each stage (paper, table 2).
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

#: Blocks up to the end of stride 16; the next one's expansion is where the first map is taken.
_BLOCKS_AT_STRIDE_16 = 13

#: The last block at stride 4 and at stride 8, whose outputs are handed out.
_TAPS = (3, 6)


class ConvBNReLU(nn.Module):
    """Convolution with ``same`` padding and no bias, normalisation, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: NormFactory,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            SameConv2d(
                in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=False
            ),
            norm(out_channels),
            nn.ReLU6(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.features(x)
        return out


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise 3x3), project (1x1, linear); added to its input if it fits.

    Args:
        in_channels: channels in.
        hidden: channels between expansion and projection; equal to ``in_channels``, there is no
            expansion.
        out_channels: channels out.
        stride: of the depthwise convolution.
        last_relu: ReLU6 after the projection, as SSD's extra layers have it.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        stride: int,
        norm: NormFactory,
        last_relu: bool = False,
    ) -> None:
        super().__init__()
        self.use_res_connect = stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if hidden != in_channels:
            layers.append(ConvBNReLU(in_channels, hidden, kernel_size=1, norm=norm))
        layers += [
            ConvBNReLU(hidden, hidden, stride=stride, groups=hidden, norm=norm),
            SameConv2d(hidden, out_channels, 1, bias=False),
            norm(out_channels),
        ]
        self.conv = nn.Sequential(*layers)
        self.last_relu = last_relu

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out: Tensor = self.conv(x)
        if self.use_res_connect:
            out = x + out
        return F.relu6(out) if self.last_relu else out


class MobileNetV2(Backbone):
    """Features at stride 4, 8, 16 (expanded) and 32.

    The stride-16 map passes through an expansion of its own, ``expand_layer_conv_13``, rather than
    that of the block that follows it, so its 56,448 parameters (at width 1) come on top.

    Args:
        width: factor on every channel count, the last included; the classification network keeps
            1,280 there.
        norm: makes the normalisation layers.

    Attributes:
        channels: of the four maps.
        strides: of the four maps.
    """

    def __init__(self, *, width: float, norm: NormFactory) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        blocks: list[nn.Module] = [ConvBNReLU(3, channels, stride=2, norm=norm)]
        for expansion, base, repeats, first_stride in _STAGES:
            out_channels = make_divisible(base * width)
            for repeat in range(repeats):
                if len(blocks) == 1 + _BLOCKS_AT_STRIDE_16:
                    expanded = channels * expansion
                    self.expand_layer_conv_13 = ConvBNReLU(
                        channels, expanded, kernel_size=1, norm=norm
                    )
                stride = first_stride if repeat == 0 else 1
                blocks.append(
                    InvertedResidual(
                        channels, channels * expansion, out_channels, stride=stride, norm=norm
                    )
                )
                channels = out_channels
        last = make_divisible(1280 * width)
        blocks.append(ConvBNReLU(channels, last, kernel_size=1, norm=norm))
        self.features_1 = nn.Sequential(*blocks[: 1 + _BLOCKS_AT_STRIDE_16])
        self.features_2 = nn.Sequential(*blocks[1 + _BLOCKS_AT_STRIDE_16 :])
        self.channels = (*(make_divisible(base * width) for base in (24, 32)), expanded, last)
        self.strides = MobileNetV2Config.strides

    @classmethod
    def from_config(cls, config: MobileNetV2Config) -> MobileNetV2:
        """Build from a configuration, initialised as He et al. (2015) do."""
        norm = partial(nn.BatchNorm2d, eps=config.bn_eps, momentum=config.bn_momentum)
        model = cls(width=config.width, norm=norm)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        return model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) to maps of 24, 32, 576 and 1,280 channels, of ceil(H / stride) rows."""
        taps = []
        for index, block in enumerate(self.features_1):
            x = block(x)
            if index in _TAPS:
                taps.append(x)
        return *taps, self.expand_layer_conv_13(x), self.features_2(x)
