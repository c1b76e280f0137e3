"""ResNet (He et al., CVPR 2016) with the stride of a block on its 3x3 convolution, "v1.5".

State-dict names are those of torchvision's ``resnet50``, without the classifier ``fc``.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from operator import mul

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.config import Depth, NormName, Pooling, ResNetConfig
from detectors.backbones.layers import (
    Backbone,
    FrozenBatchNorm2d,
    NormFactory,
    make_divisible,
)

#: Blocks in each of the four stages (paper, table 1).
_BLOCKS: dict[Depth, tuple[int, int, int, int]] = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}

#: Channels inside the blocks of each stage; they put out four times as many.
_CHANNELS = (64, 128, 256, 512)
_EXPANSION = 4


def make_norm(name: NormName, *, eps: float = 1e-5) -> NormFactory:
    """The normalisation layer of a name, by number of channels."""
    if name == "batch":
        return partial(nn.BatchNorm2d, eps=eps)
    return partial(FrozenBatchNorm2d, eps=eps, train_affine=name == "affine")


class Bottleneck(nn.Module):
    """Squeeze (1x1), filter (3x3), expand (1x1); added to its input, projected where it must be.

    Args:
        in_channels: channels in.
        channels: channels of the 3x3 convolution.
        out_channels: channels out.
        stride: of the 3x3 convolution and of the projection.
        project: whether a 1x1 convolution fits the input to the output.
        norm: makes the normalisation layers.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        stride: int,
        project: bool,
        norm: NormFactory,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                norm(out_channels),
            )
            if project
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(Backbone):
    """Features at strides 4, 8, 16 and 32: C2 to C5, at width 1 of 256 to 2,048 channels.

    ResNet-50 has 23,508,032 parameters at width 1, affine of the normalisation included.

    Args:
        depth: number of layers by which it is known.
        norm: makes the normalisation layers.
        width: factor on every channel count, rounded to multiples of 8.
        frozen_parts: leading parts that do not train: 1 the stem, 2 the first stage as well, and so
            on; 0 none, 5 all. Their parameters take no gradient and normalisation layers in them
            stay in evaluation mode.
        strides: of the four stages, on top of the stem's 4. M2Det's third stage does not halve.
        pooling: whose padding the pooling after the stem has.

    Attributes:
        channels: of the four maps.
        strides: of the four maps.
    """

    def __init__(
        self,
        *,
        depth: Depth = 50,
        norm: NormFactory,
        width: float = 1.0,
        frozen_parts: int = 0,
        strides: tuple[int, int, int, int] = (1, 2, 2, 2),
        pooling: Pooling = "torchvision",
    ) -> None:
        super().__init__()
        self.pooling = pooling
        stem = make_divisible(_CHANNELS[0] * width)
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(stem)
        inner = [make_divisible(base * width) for base in _CHANNELS]
        outer = [channels * _EXPANSION for channels in inner]
        stages = []
        for stage, (in_channels, out_channels) in enumerate(pairwise((stem, *outer))):
            blocks = [
                Bottleneck(
                    in_channels if block == 0 else out_channels,
                    inner[stage],
                    out_channels,
                    stride=strides[stage] if block == 0 else 1,
                    project=block == 0,
                    norm=norm,
                )
                for block in range(_BLOCKS[depth][stage])
            ]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.channels = tuple(outer)
        self.strides = tuple(accumulate(strides, mul, initial=4))[1:]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        parts = [(self.conv1, self.bn1), *((stage,) for stage in stages)]
        self._frozen = [module for part in parts[:frozen_parts] for module in part]
        for module in self._frozen:
            module.requires_grad_(False)

    @classmethod
    def from_config(cls, config: ResNetConfig) -> ResNet:
        """Build from a configuration."""
        return cls(
            depth=config.depth,
            norm=make_norm(config.norm, eps=config.bn_eps),
            width=config.width,
            frozen_parts=config.frozen_parts,
            pooling=config.pooling,
        )

    def train(self, mode: bool = True) -> ResNet:
        """Training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to C2, C3, C4, C5; sizes are rounded up."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pooling == "mindspore":
            # "SAME": what is missing comes at the end, or on both sides where it is two cells.
            odd = (x.shape[2] % 2, x.shape[3] % 2)
            x = F.max_pool2d(x, 3, stride=2, padding=odd, ceil_mode=True)
        else:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        c2: Tensor = self.layer1(x)
        c3: Tensor = self.layer2(c2)
        c4: Tensor = self.layer3(c3)
        c5: Tensor = self.layer4(c4)
        return c2, c3, c4, c5
