"""The end of a step: everything that it changes is changed, or keeps every bit.

A CPU has done its work when it hands over a number, so there the host looks at the numbers of the
step and decides (:class:`HostUpdate`). Other devices work behind the host's back, and would stand
still while it looks; there the decision is made on the device and the host learns of it a step
later (:class:`DeviceUpdate`). So that the host never has to know better, a step that was not
applied is a latch: those begun after it change nothing either, until the host has seen it and
begins them anew, from the very state that the bad step met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.training.ema import WeightAverage
from orchestrator.training.gradients import Gradients
from orchestrator.training.saved_tensors import SavedTensors


@dataclass(frozen=True)
class Updated:
    """What a step changes.

    Attributes:
        optimizer: over the weights.
        scaler: of the loss; its ``unscale_`` has been called.
        gradients: of the whole batch.
        clip_norm: limit of their norm; None for none.
        average: of the weights; None without one.
        buffers: of the model, saved when the step began.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    gradients: Gradients
    clip_norm: float | None
    average: WeightAverage | None
    buffers: SavedTensors


@dataclass(frozen=True)
class Numbers:
    """What decides whether a step is applied; the same on all ranks.

    Attributes:
        shared: (n,) losses, wish to stop, largest magnitude of the state and overflows that the
            loss scaler saw, in this order.
        norm: of the gradient, a scalar.
    """

    shared: Tensor
    norm: Tensor

    def together(self) -> Tensor:
        """(n + 1,) all of them."""
        return torch.cat([self.shared, self.norm.float().reshape(1)])


class Update(Protocol):
    """Applies steps or leaves them out.

    Attributes:
        ahead: steps that may be begun before the numbers of an earlier one are read.
    """

    ahead: int

    def apply(self, numbers: Numbers, updates: int) -> Tensor:
        """Apply the step if all its numbers are finite, and otherwise change nothing.

        Args:
            numbers: of the step.
            updates: optimizer steps with this one.

        Returns:
            (n + 2,) the numbers, and 1 where the step was held by an earlier one that was not
            applied, on the device.
        """
        ...

    def seen(self) -> None:
        """The host has seen that the oldest step it had not seen yet was applied."""
        ...

    def take_back(self, begun: int) -> None:
        """The host has seen a step that was not applied.

        Args:
            begun: steps since, with it; none of them has changed anything.
        """
        ...


class HostUpdate:
    """The host looks at the numbers and decides."""

    ahead = 0

    def __init__(self, updated: Updated) -> None:
        self._all = updated

    def apply(self, numbers: Numbers, updates: int) -> Tensor:
        """See :class:`Update`."""
        of, together = self._all, numbers.together()
        *values, overflows, norm = together.tolist()
        finite_loss = all(map(math.isfinite, values))
        finite = finite_loss and math.isfinite(norm) and overflows == 0.0
        if finite:
            if of.clip_norm is not None:
                of.gradients.clip_(numbers.norm, of.clip_norm)
            of.scaler.step(of.optimizer)
            if of.average is not None:
                of.average.update(updates)
        else:
            of.buffers.restore()
        if of.scaler.is_enabled():
            before = None if finite_loss else of.scaler.state_dict()
            of.scaler.update()
            if before is not None:
                of.scaler.load_state_dict(before)
        return torch.cat([together, together.new_zeros(1)])

    def seen(self) -> None:
        """See :class:`Update`; it knew."""

    def take_back(self, begun: int) -> None:
        """See :class:`Update`; nothing was begun in vain."""


class DeviceUpdate:
    """The device decides; the host never waits.

    Optimizers with a fused kernel leave a step out by themselves. The state of others is saved
    before each step and taken back where it has to be.

    Args:
        updated: what steps change.
        fused: whether the optimizer was made with ``fused=True``.
    """

    ahead = 1

    def __init__(self, updated: Updated, *, fused: bool) -> None:
        self._all = updated
        self._fused = fused
        device = updated.gradients.flats[0].device
        self._latched = torch.zeros((), dtype=torch.bool, device=device)
        self._saved: SavedTensors | None = None
        groups = updated.optimizer.param_groups
        self._weights: list[Tensor] = [p for group in groups for p in group["params"]]
        #: Weights of which the optimizer held nothing before a step that the host has not seen yet.
        self._fresh: list[Tensor] = []

    @torch.no_grad()
    def apply(self, numbers: Numbers, updates: int) -> Tensor:
        """See :class:`Update`."""
        of = self._all
        held = self._latched.clone()
        finite_loss = numbers.shared.isfinite().all()
        finite = finite_loss & numbers.norm.isfinite() & (numbers.shared[-1] == 0.0)
        applied = finite & ~held
        skipped = ~applied
        self._step(numbers.norm, skipped)
        if of.average is not None:
            of.average.update(updates, applied=applied)
        of.buffers.restore_if(skipped)
        if of.scaler.is_enabled():
            # An overflow is the scaler's business; nothing else is, and neither is a held step.
            self._update_scaler(finite_loss & ~held)
        self._latched.logical_or_(~finite)
        return torch.cat([numbers.together(), held.float().reshape(1)])

    def take_back(self, begun: int) -> None:
        """See :class:`Update`."""
        self._latched.zero_()
        optimizer = self._all.optimizer
        # The first step of a weight makes what is kept of it, here from what was not finite.
        for weight in self._fresh:
            optimizer.state.pop(weight, None)
        if self._fresh:
            self._saved = None
        if not self._fused:
            counters = [state["step"] for state in optimizer.state.values() if "step" in state]
            if counters:
                torch._foreach_sub_(counters, begun)
        self._fresh = []

    def seen(self) -> None:
        """See :class:`Update`."""
        self._fresh = []

    def _step(self, norm: Tensor, skipped: Tensor) -> None:
        """Have the optimizer step, unless ``skipped``."""
        of = self._all
        kept = of.optimizer.state
        if len(kept) < len(self._weights):
            # All of them in the first step of a run, and some in the first of one that goes on with
            # the state of another, in which these were frozen.
            self._fresh += [weight for weight in self._weights if weight not in kept]
        if self._fused:
            self._complete_momentum()
            optimizer: Any = of.optimizer
            if of.clip_norm is not None:
                # The kernel divides by it on the way, which saves a pass over the gradients.
                optimizer.grad_scale = ((norm + 1e-6) / of.clip_norm).clamp(min=1.0)
            optimizer.found_inf = skipped.float()
            optimizer.step()
            return
        if of.clip_norm is not None:
            of.gradients.clip_(norm, of.clip_norm)
        if self._saved is None:
            self._saved = SavedTensors(self._state())
        else:
            self._saved.save()
        of.optimizer.step()
        self._saved.restore_if(skipped)
        if self._fresh:
            # From now on there is more to save.
            self._saved = None

    def _complete_momentum(self) -> None:
        """Give weights without momentum one of zeros, where others of their group have one.

        The kernel of SGD takes all of a group or none. From zeros their first step is what it is
        without.
        """
        kept = self._all.optimizer.state
        if not self._fresh or not kept:
            return
        for group in self._all.optimizer.param_groups:
            if group.get("momentum"):
                for weight in group["params"]:
                    if weight not in kept:
                        kept[weight]["momentum_buffer"] = torch.zeros_like(weight)

    def _state(self) -> list[Tensor]:
        """Weights and what the optimizer keeps of them on the device."""
        kept = [
            value
            for state in self._all.optimizer.state.values()
            for kind, value in state.items()
            if isinstance(value, Tensor) and kind != "step"
        ]
        return [*self._weights, *kept]

    def _update_scaler(self, allowed: Tensor) -> None:
        """Let the loss scaler learn from the step, if ``allowed``; its own check would wait."""
        scaler: Any = self._all.scaler
        state = SavedTensors([scaler._scale, scaler._growth_tracker])
        scaler.update()
        state.restore_if(~allowed)
