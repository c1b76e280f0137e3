"""The parts of the Multi-Level Feature Pyramid Network (Zhao et al., AAAI 2019, section 3.1).

Module names are those of VDIGPKU/M2Det, so that released weights load as they are. Maps are
(N, C, H, W); a pyramid is a list of maps, and its order is said where it is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: The encoder of a U: halvings, then one convolution without padding; one map more than that.
_HALVINGS = 4

#: Squeeze of the channel attention.
_COMPRESSION = 16


class BasicConv(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, momentum=0.01)
        self.relu = nn.ReLU(inplace=True)


def fuse(shallow: Tensor, deep: Tensor) -> Tensor:
    """FFMv1: reduced backbone features of stride 8 and 16 to the base feature of stride 8.

    Args:
        shallow: (N, C, H, W).
        deep: (N, C', H/2, W/2).

    Returns:
        (N, C + C', H, W), the shallow channels first.
    """
    return torch.cat([shallow, F.interpolate(deep, scale_factor=2, mode="nearest")], dim=1)


class ThinnedUShape(nn.Module):
    """TUM: one level of the pyramid, an encoder and a decoder with lateral connections.

    The sums of the decoder are smoothed for the output and go on upwards as they are; nothing is
    applied to them in between, both addends being outputs of a ReLU.

    Args:
        in_channels: of the input.
        channels: of every map inside and of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inputs = [in_channels] + [channels] * (_HALVINGS - 1)
        self.layers = nn.Sequential(
            *(BasicConv(each, channels, 3, stride=2, padding=1) for each in inputs),
            BasicConv(channels, channels, 3),
        )
        self.toplayer = nn.Sequential(BasicConv(channels, channels, 1))
        self.latlayer = nn.Sequential(
            *(BasicConv(channels, channels, 3, padding=1) for _ in range(_HALVINGS)),
            BasicConv(in_channels, channels, 3, padding=1),
        )
        self.smooth = nn.Sequential(
            *(BasicConv(channels, channels, 1) for _ in range(_HALVINGS + 1))
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) to six maps, small to large; the last has the size of the input."""
        encoded = [x]
        for layer in self.layers:
            encoded.append(layer(encoded[-1]))
        summed = self.toplayer(encoded.pop())
        outputs = [summed]
        for lateral, smooth in zip(self.latlayer, self.smooth, strict=True):
            side = lateral(encoded.pop())
            summed = F.interpolate(summed, size=side.shape[-2:], mode="nearest") + side
            outputs.append(smooth(summed))
        return outputs


class ScaleAttention(nn.Module):
    """SFAM: weigh the channels of each scale by what the whole map holds (paper, eq. 4 and 5).

    One pair of layers serves all scales, as in the released code; the paper's compression of 16 is
    fixed there.

    Args:
        channels: of every map.
        scales: number of maps.
    """

    def __init__(self, channels: int, *, scales: int) -> None:
        super().__init__()
        self.fc1 = nn.ModuleList([nn.Conv2d(channels, channels // _COMPRESSION, 1)] * scales)
        self.fc2 = nn.ModuleList([nn.Conv2d(channels // _COMPRESSION, channels, 1)] * scales)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of any order to maps of the same shapes."""
        weighted = []
        for x, squeeze, expand in zip(maps, self.fc1, self.fc2, strict=True):
            mean = x.mean(dim=(2, 3), keepdim=True)
            weighted.append(x * expand(F.relu(squeeze(mean))).sigmoid())
        return weighted
