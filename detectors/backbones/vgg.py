"""VGG16 (Simonyan and Zisserman, ICLR 2015) with its two large layers turned into convolutions.

Layer indices are those of amdegroot/ssd.pytorch and of M2Det, so that ``vgg16_reducedfc.pth`` and
the backbones of released detectors load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detectors.backbones.config import VGG16Config
from detectors.backbones.layers import Backbone, make_divisible

#: Channels of the convolutions up to conv5_3 and the pools between them; one of them rounds its
#: output size up, which turns 75 cells into 38.
_LAYERS = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool up", 512, 512, 512)
_LAYERS_5 = ("pool", 512, 512, 512)

#: Indices of the ReLU after conv3_3, conv4_3 and fc7, whose outputs are handed out.
_TAPS = (15, 22, 34)


class VGG16Reduced(nn.ModuleList, Backbone):
    """Features at stride 4 (conv3_3), 8 (conv4_3) and, after the dilated fc6 and fc7, at 16.

    Without normalisation layers. 20,483,904 parameters at width 1.

    Args:
        width: factor on every channel count.

    Attributes:
        channels: of the three maps.
        strides: of the three maps, where the input size is a multiple of 16.
    """

    def __init__(self, *, width: float) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for layer in _LAYERS + _LAYERS_5:
            if isinstance(layer, int):
                out_channels = make_divisible(layer * width)
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out_channels
            else:
                layers.append(nn.MaxPool2d(2, 2, ceil_mode=layer == "pool up"))
        large = make_divisible(1024 * width)
        layers += [
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(channels, large, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(large, large, 1),
            nn.ReLU(inplace=True),
        ]
        super().__init__(layers)
        self.channels = (make_divisible(256 * width), channels, large)
        self.strides = VGG16Config.strides

    @classmethod
    def from_config(cls, config: VGG16Config) -> VGG16Reduced:
        """Build from a configuration, initialised as He et al. (2015) do."""
        return cls(width=config.width).initialize()

    def initialize(self) -> VGG16Reduced:
        """Draw the weights as He et al. (2015) do, by fan-out."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) to (N, 256, H/4, W/4), (N, 512, H/8, W/8) and (N, 1024, H/16, W/16)."""
        taps = []
        for index, layer in enumerate(self):
            x = layer(x)
            if index in _TAPS:
                taps.append(x)
        return taps[0], taps[1], taps[2]


class L2Norm(nn.Module):
    """Scale the channel vector of each cell to a learnt length, 20 at first.

    Evens out conv4_3, whose values are larger than those of the later maps (Liu et al., ParseNet,
    2015).
    """

    def __init__(self, channels: int, *, length: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), length))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        # Half precision has no 1e-10: a cell of zeros would become 0 / 0.
        exact = torch.promote_types(x.dtype, torch.float32)
        norm: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=exact)
        return self.weight.view(1, -1, 1, 1) * (x / (norm + 1e-10))
