"""Exponential moving average of the weights, as plain named tensors that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn


def decay_at(updates: int, *, decay: float, warmup_steps: int) -> float:
    """Decay used by update number ``updates`` (1 is the first)."""
    if warmup_steps == 0:
        return decay
    return decay * (1.0 - math.exp(-updates / warmup_steps))


class WeightAverage:
    """Average of a model's floating-point state; integer buffers are copied.

    The decay warms up as ``decay * (1 - exp(-updates / warmup_steps))``, so that early averages
    are not dominated by the random initialisation. The number of updates is the number of
    optimizer steps taken, which the caller knows: no counter lives here.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_steps: int) -> None:
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in model.state_dict().items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move the average towards the model's present state."""
        weight = 1.0 - decay_at(updates, decay=self.decay, warmup_steps=self.warmup_steps)
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self.tensors[name])
                values.append(tensor.detach())
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averages, values, weight)

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over saved averages, by name."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    def applied_to(self, model: nn.Module) -> AbstractContextManager[None]:
        """Let ``model`` hold the average inside the block, and its own state again after it."""
        return holding(model, self.tensors)


@contextmanager
def holding(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let ``model`` hold another state inside the block, and its own again after it."""
    own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(tensors)
    try:
        yield
    finally:
        model.load_state_dict(own)
