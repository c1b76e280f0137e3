"""SpineNet (Du et al., CVPR 2020): a backbone whose resolution goes up and down as it deepens.

Sources: the paper; tensorflow/tpu, models/official/detection; yan-roo/SpineNet-Pytorch, whose
state-dict names these are: ``conv1``, ``init_block1``, ``init_block2``, ``merge_ops.<i>``,
``scale_permuted_blocks.<i>``, ``endpoint_convs.<level>``.

Levels are binary logarithms of the stride. Blocks are numbered as in the paper's search result: 0
and 1 are the stem's, so block i is entry i - 2 of the two module lists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from detectors import draws
from detectors.backbones.config import Activation, Arch, SpineNetConfig
from detectors.backbones.layers import Backbone, ConvNormAct, NormFactory

#: Makes an activation layer.
ActFactory = Callable[[], nn.Module]

#: What the activations are called in a configuration.
ACTIVATIONS: dict[Activation, ActFactory] = {
    "relu": partial(nn.ReLU, inplace=True),
    "silu": nn.SiLU,
}

#: Levels that are handed out.
LEVELS = (3, 4, 5, 6, 7)


class Architecture(NamedTuple):
    """What the published members of the family differ in.

    Attributes:
        scale: factor on the channel counts of blocks.
        repeats: residual units in each block.
        alpha: share of a parent's channels that its resampling works with.
        endpoint_channels: of the maps handed out.
    """

    scale: float
    repeats: int
    alpha: float
    endpoint_channels: int


ARCHITECTURES: dict[Arch, Architecture] = {
    "49S": Architecture(0.65, 1, 0.5, 128),
    "49": Architecture(1.0, 1, 0.5, 256),
    "96": Architecture(1.0, 2, 0.5, 256),
    "143": Architecture(1.0, 3, 1.0, 256),
    "190": Architecture(1.3, 4, 1.0, 512),
}


class Block(NamedTuple):
    """One block of the search result.

    Attributes:
        level: of its output.
        bottleneck: 1x1, 3x3 and 1x1 convolutions with four times the channels at the end; otherwise
            two of 3x3.
        inputs: the two earlier blocks it merges.
        output: whether its map is handed out.
    """

    level: int
    bottleneck: bool
    inputs: tuple[int, int]
    output: bool = False


#: Figure 6 of the paper; the stem's two blocks have no inputs in it.
BLOCKS = (
    Block(2, True, (0, 0)),
    Block(2, True, (0, 0)),
    Block(2, True, (0, 1)),
    Block(4, False, (0, 1)),
    Block(3, True, (2, 3)),
    Block(4, True, (2, 4)),
    Block(6, False, (3, 5)),
    Block(4, True, (3, 5)),
    Block(5, False, (6, 7)),
    Block(7, False, (6, 8)),
    Block(5, True, (8, 9)),
    Block(5, True, (8, 10)),
    Block(4, True, (5, 10), output=True),
    Block(3, True, (4, 10), output=True),
    Block(5, True, (7, 12), output=True),
    Block(7, True, (5, 14), output=True),
    Block(6, True, (12, 14), output=True),
)
_STEM = 2

#: Channels of a block before the factors, by level.
_WIDTHS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}


def extra_links() -> dict[int, list[int]]:
    """Blocks whose output an output block adds as it is, by the number of the output block.

    They are those nothing has used by then that have its level and its channels. In the published
    search result that is block 11, which block 14 adds.
    """
    used = [0] * len(BLOCKS)
    links: dict[int, list[int]] = {}
    for index, block in enumerate(BLOCKS[_STEM:], start=_STEM):
        if block.output:
            for earlier, other in enumerate(BLOCKS[:index]):
                same = (other.level, other.bottleneck) == (block.level, block.bottleneck)
                if used[earlier] == 0 and same:
                    links.setdefault(index, []).append(earlier)
                    used[earlier] += 1
        for parent in block.inputs:
            used[parent] += 1
    return links


def _conv(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias, padded so that stride 1 keeps the size."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
    )


class Unit(nn.Module):
    """Convolutions with normalisation, and activation after all but the last, added to the input.

    Args:
        in_channels: channels in.
        width: channels between the convolutions.
        bottleneck: see :class:`Block`.
        drop: probability with which the convolutions of an image are left out in training, the
            others being divided by what remains (Huang et al., ECCV 2016).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        bottleneck: bool,
        norm: NormFactory,
        act: ActFactory,
        drop: float,
    ) -> None:
        super().__init__()
        out_channels = 4 * width if bottleneck else width
        shapes = [(in_channels, width, 3), (width, width, 3)]
        if bottleneck:
            shapes = [(in_channels, width, 1), (width, width, 3), (width, out_channels, 1)]
        self.count = len(shapes)
        for index, shape in enumerate(shapes, start=1):
            self.add_module(f"conv{index}", _conv(*shape))
            self.add_module(f"bn{index}", norm(shape[1]))
        self.act = act()
        self.downsample: nn.Sequential | None = None
        if in_channels != out_channels:
            self.downsample = nn.Sequential(_conv(in_channels, out_channels, 1), norm(out_channels))
        self.drop = drop

    @property
    def last_norm(self) -> nn.Module:
        """Normalisation after the last convolution."""
        return self.get_submodule(f"bn{self.count}")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        out = x
        for index in range(1, self.count + 1):
            out = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(out))
            if index < self.count:
                out = self.act(out)
        if self.training and self.drop > 0.0:
            kept = draws.rand((len(out), 1, 1, 1), device=out.device) >= self.drop
            out = out * (kept.to(out.dtype) / (1.0 - self.drop))
        shortcut = x if self.downsample is None else self.downsample(x)
        activated: Tensor = self.act(out + shortcut)
        return activated


class Resample(nn.Module):
    """Brings a parent's map to the level and the channels of a block.

    Args:
        in_channels: of the parent.
        channels: in between.
        out_channels: of the block.
        rise: level of the block less that of the parent.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        *,
        rise: int,
        norm: NormFactory,
        act: ActFactory,
    ) -> None:
        super().__init__()
        self.rise = rise
        self.squeeze_conv = ConvNormAct(_conv(in_channels, channels, 1), norm(channels), act())
        if rise > 0:
            self.downsample_conv = ConvNormAct(
                _conv(channels, channels, 3, stride=2), norm(channels), act()
            )
        self.expand_conv = ConvNormAct(_conv(channels, out_channels, 1), norm(out_channels), None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / 2**rise, W / 2**rise)."""
        x = self.squeeze_conv(x)
        if self.rise > 0:
            x = self.downsample_conv(x)
        if self.rise > 1:
            size = 3 if self.rise == 2 else 5
            x = F.max_pool2d(x, size, stride=2 ** (self.rise - 1), padding=size // 2)
        if self.rise < 0:
            x = F.interpolate(x, scale_factor=float(2**-self.rise), mode="nearest")
        out: Tensor = self.expand_conv(x)
        return out


class Merge(nn.Module):
    """Sum of a block's two parents, each resampled."""

    def __init__(self, first: Resample, second: Resample) -> None:
        super().__init__()
        self.resample_ops = nn.ModuleList([first, second])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Two maps to one of the block's shape."""
        total: Tensor = self.resample_ops[0](first) + self.resample_ops[1](second)
        return total


class SpineNet(Backbone):
    """Features at levels 3 to 7, of equally many channels.

    Height and width of the input are multiples of 128: half a cell of the coarsest level cannot be
    merged with finer ones.

    Initialisation is He's normal by fan-out, as in SpineNet-Pytorch.

    Args:
        config: validated configuration. Where it leaves out convolutions by chance, that of the
            blocks before the last grows linearly towards the last's, from a fifteenth.

    Attributes:
        channels: of each map handed out.
        strides: of each map.
    """

    def __init__(self, config: SpineNetConfig) -> None:
        super().__init__()
        width = config.width
        norm = partial(nn.BatchNorm2d, eps=config.bn_eps, momentum=config.bn_momentum)
        act = ACTIVATIONS[config.activation]
        architecture = ARCHITECTURES[config.arch]
        widths = {lv: int(base * architecture.scale * width) for lv, base in _WIDTHS.items()}
        channels = int(architecture.endpoint_channels * width)
        self.channels = (channels,) * len(LEVELS)
        self.strides = tuple(2**level for level in LEVELS)

        def group(in_channels: int, block: Block, drop: float = 0.0) -> nn.Sequential:
            units = []
            for _ in range(architecture.repeats):
                unit = Unit(
                    in_channels,
                    widths[block.level],
                    bottleneck=block.bottleneck,
                    norm=norm,
                    act=act,
                    drop=drop,
                )
                units.append(unit)
                in_channels = expanded(block)
            return nn.Sequential(*units)

        def expanded(block: Block) -> int:
            return widths[block.level] * (4 if block.bottleneck else 1)

        def resample(parent: Block, block: Block) -> Resample:
            return Resample(
                expanded(parent),
                int(widths[parent.level] * architecture.alpha),
                expanded(block),
                rise=block.level - parent.level,
                norm=norm,
                act=act,
            )

        stem = int(64 * width)
        self.conv1 = ConvNormAct(_conv(3, stem, 7, stride=2), norm(stem), act())
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.init_block1 = group(stem, BLOCKS[0])
        self.init_block2 = group(expanded(BLOCKS[0]), BLOCKS[1])
        self.merge_ops = nn.ModuleList()
        self.scale_permuted_blocks = nn.ModuleList()
        permuted = BLOCKS[_STEM:]
        for index, block in enumerate(permuted):
            first, second = (BLOCKS[parent] for parent in block.inputs)
            self.merge_ops.append(Merge(resample(first, block), resample(second, block)))
            drop = config.stochastic_depth * (index + 1) / len(permuted)
            self.scale_permuted_blocks.append(group(expanded(block), block, drop))
        self.endpoint_convs = nn.ModuleDict(
            {
                str(block.level): ConvNormAct(
                    _conv(expanded(block), channels, 1),
                    norm(channels),
                    act() if config.endpoints == "activated" else None,
                )
                for block in permuted
                if block.output
            }
        )
        self.act = act()
        self._links = extra_links()
        self._init_weights(zero_init=config.zero_init)

    def _init_weights(self, *, zero_init: bool) -> None:
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if zero_init and isinstance(part, Unit) and isinstance(part.last_norm, nn.BatchNorm2d):
                nn.init.zeros_(part.last_norm.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), H and W multiples of 128, to five maps (N, C, H / 2**level, ...)."""
        first = self.init_block1(self.maxpool(self.conv1(x)))
        maps: list[Tensor] = [first, self.init_block2(first)]
        outputs: dict[int, Tensor] = {}
        for index, block in enumerate(BLOCKS[_STEM:], start=_STEM):
            merged = self.merge_ops[index - _STEM](*(maps[parent] for parent in block.inputs))
            for earlier in self._links.get(index, ()):
                merged = merged + maps[earlier]
            maps.append(self.scale_permuted_blocks[index - _STEM](self.act(merged)))
            if block.output:
                outputs[block.level] = maps[-1]
        return tuple(self.endpoint_convs[str(level)](outputs[level]) for level in LEVELS)
