"""Batch normalisation other than each worker's over its own images: kept fixed, or shared.

Both kinds are put in place of ``nn.BatchNorm2d`` and keep its parameters, buffers and state-dict
names, so checkpoints do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Normalises by its stored statistics, in training as well, and never changes them."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Normalises by the statistics of all ranks' images together.

    As ``nn.SyncBatchNorm``, which refuses tensors on a CPU; made of collectives that every backend
    has. All ranks must have equally many images, which is so for the shares of one batch. The
    variance is that of the differences from the common mean, a second exchange that the shortcut
    over squares would save and pay for with precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape and type."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(input)
        exact = input.float()
        world = dist.get_world_size()
        mean = _sum_over_ranks(exact.mean((0, 2, 3))) / world
        centred = exact - mean.view(1, -1, 1, 1)
        variance = _sum_over_ranks(centred.square().mean((0, 2, 3))) / world
        if self.track_running_stats:
            self._follow(mean, variance, world * input.numel() // input.shape[1])
        scale = (variance + self.eps).rsqrt()
        if not self.affine:
            return (centred * scale.view(1, -1, 1, 1)).to(input.dtype)
        scale = scale * self.weight
        shifted = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return shifted.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Let the stored statistics follow those of ``count`` values of each channel."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # The mean of all batches so far.
            momentum = 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / max(1, count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over ranks. What each rank's loss says about it concerns all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        summed: Tensor = gradients[0].clone()
        dist.all_reduce(summed)
        return summed


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    summed: Tensor = _SumOverRanks.apply(tensor)
    return summed


def replace_batch_norm(
    model: nn.Module, kind: type[nn.BatchNorm2d], chosen: Callable[[str], bool]
) -> list[str]:
    """Put ``kind`` in place of the plain batch normalisation layers with a chosen name.

    Args:
        model: changed in place; shared layers stay shared.
        kind: one of the classes above.
        chosen: asked with the name of each layer.

    Returns:
        Names of the layers that were replaced, each under all names it has.
    """
    made: dict[nn.Module, nn.BatchNorm2d] = {}
    names = []
    for prefix, parent in list(model.named_modules(remove_duplicate=False)):
        for name, layer in list(parent._modules.items()):
            full = f"{prefix}.{name}" if prefix else name
            if type(layer) is nn.BatchNorm2d and chosen(full):
                made[layer] = made.get(layer) or _as(layer, kind)
            if layer in made:
                setattr(parent, name, made[layer])
                names.append(full)
    return names


def single_values(model: nn.Module, size: tuple[int, int]) -> list[str]:
    """Names of the batch normalisation layers that get one value of each channel from one image.

    Such a layer has no variance to normalise by where it trains on a single image, and torch
    refuses it. Layers that keep their statistics are left out, and so are shared ones.

    Args:
        model: in training mode, best on the meta device, where nothing is computed; left in
            evaluation mode.
        size: (H, W) of its input.
    """
    training: dict[nn.Module, str] = {
        layer: name
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) and layer.training
    }
    found: list[str] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[2:].numel() == 1:
            found.append(training[layer])

    handles = [layer.register_forward_pre_hook(look) for layer in training]
    try:
        with torch.no_grad():
            device = next(model.parameters()).device
            model.eval()(torch.zeros(1, 3, *size, dtype=torch.uint8, device=device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _as(layer: nn.BatchNorm2d, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """A layer of another class around the same tensors."""
    other = kind(
        layer.num_features,
        eps=layer.eps,
        momentum=layer.momentum,
        affine=layer.affine,
        track_running_stats=layer.track_running_stats,
        device="meta",
    )
    for name, parameter in layer.named_parameters():
        setattr(other, name, parameter)
    for name, buffer in layer.named_buffers():
        setattr(other, name, buffer)
    return other.train(layer.training)
