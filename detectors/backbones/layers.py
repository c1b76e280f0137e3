"""Building bricks whose details decide whether published weights and counts fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Makes the normalisation layer for a number of channels.
NormFactory: TypeAlias = Callable[[int], nn.Module]


class Backbone(nn.Module):
    """A network from normalised images (N, 3, H, W) to feature maps, finest first.

    Attributes:
        channels: of each map.
        strides: pixels per cell of each map; it has ``ceil(H / stride)`` rows.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of ``divisor``, at least one, and never more than 10 % below ``channels``.

    The rounding rule of the MobileNet family's width multiplier.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SameConv2d(nn.Conv2d):
    """Convolution with the ``same`` padding of TensorFlow and MindSpore.

    The output has ceil(size / stride) cells, and an odd padding puts the extra row or column
    *after* the image. With stride 2 and a 3x3 kernel that is 0 before and 1 after for an even
    size, 1 and 1 for an odd one; torch's ``padding=1`` would shift every even-sized map by a pixel.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', ceil(H / stride), ceil(W / stride))."""
        bottom_top = self._amount(input.shape[-2], 0)
        right_left = self._amount(input.shape[-1], 1)
        before = (bottom_top // 2, right_left // 2)
        after = (bottom_top - before[0], right_left - before[1])
        if before == after:
            return F.conv2d(
                input, self.weight, self.bias, self.stride, before, self.dilation, self.groups
            )
        padded = F.pad(input, (before[1], after[1], before[0], after[0]))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _amount(self, size: int, axis: int) -> int:
        """Rows or columns to add in all."""
        stride, reach = self.stride[axis], self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        cells = -(-size // stride)
        return max((cells - 1) * stride + reach - size, 0)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by stored statistics, in training as well; it never updates them.

    State-dict names are those of ``nn.BatchNorm2d``, whose ``num_batches_tracked`` is accepted on
    loading and dropped.

    Args:
        channels: channels in and out.
        eps: added to the variance.
        train_affine: whether weight and bias are parameters, as in the MindSpore model zoo's Faster
            R-CNN, or constants like the statistics, as in torchvision.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, train_affine: bool = False) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", torch.ones(channels)), ("bias", torch.zeros(channels))):
            if train_affine:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Channels and eps, shown in the printed module."""
        return f"{len(self.weight)}, eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)


class ConvNormAct(nn.Module):
    """Convolution, batch normalisation and an activation, under mmdetection's names.

    Args:
        conv: without bias; it may be shared with other modules.
        bn: its normalisation.
        act: activation; None for none.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.Module, act: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.bn = bn
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H', W') as the convolution says."""
        out: Tensor = self.bn(self.conv(x))
        return out if self.act is None else self.act(out)


def init_truncated_normal(module: nn.Module, *, std: float = 0.02) -> None:
    """Draw all convolution weights from a normal cut at two deviations and zero their biases.

    The initialisation of the MindSpore SSD, backbone included.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.trunc_normal_(part.weight, std=std, a=-2 * std, b=2 * std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def init_xavier(module: nn.Module) -> None:
    """Draw all convolution weights as Glorot and Bengio (2010) do, uniformly, and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
