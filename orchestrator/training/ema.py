"""Exponential moving average of the weights, as plain named tensors that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from orchestrator.training.saved_tensors import Bits
from orchestrator.training.schedules import decay_at


class WeightAverage:
    """Average of a model's floating-point state; integer buffers are copied.

    The decay warms up as ``decay * (1 - exp(-updates / warmup_steps))``, so that early averages
    are not dominated by the random initialisation. The number of updates is the number of
    optimizer steps taken, which the caller knows: no counter lives here.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_steps: int) -> None:
        self.decay = decay
        self.warmup_steps = warmup_steps
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.tensors: dict[str, Tensor] = {name: tensor.clone() for name, tensor in state.items()}
        # Looking them up takes milliseconds, and they stay what they are: all changes are in place.
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        others = [name for name, tensor in state.items() if not tensor.is_floating_point()]
        self._averages = [self.tensors[name] for name in floating]
        self._values = [state[name] for name in floating]
        self._copies = [self.tensors[name] for name in others]
        self._originals = [state[name] for name in others]
        self._bits = Bits([*self._averages, *self._copies])

    @torch.no_grad()
    def update(self, updates: int, *, applied: Tensor | None = None) -> None:
        """Move the average towards the model's present state.

        Args:
            updates: optimizer steps, with the last one.
            applied: a bool scalar on the device that says whether to; None for yes.
        """
        weight = 1.0 - decay_at(updates, decay=self.decay, warmup_steps=self.warmup_steps)
        if applied is not None:
            moved = torch._foreach_lerp(self._averages, self._values, weight)
            self._bits.become(Bits([*moved, *self._originals]), applied)
            return
        if self._copies:
            torch._foreach_copy_(self._copies, self._originals)
        torch._foreach_lerp_(self._averages, self._values, weight)

    @torch.no_grad()
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
