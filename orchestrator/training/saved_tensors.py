"""Copies of tensors that a step may have to be taken back to, whether or not the host knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_INTEGER_OF_BYTES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Bits:
    """The bits of tensors as integers, in groups of one width; views, not copies."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            integer = _INTEGER_OF_BYTES[tensor.element_size()]
            groups.setdefault(integer, []).append(tensor.detach().view(integer))
        self.groups = groups

    @torch.no_grad()
    def become(self, others: Bits, chosen: Tensor) -> None:
        """Let each tensor be its counterpart, bit for bit, if a device says so; nobody waits.

        Integers wrap around, so that adding a difference arrives exactly, whatever the bits stand
        for; a select by arithmetic on floats would not get past a NaN or a negative zero.

        Args:
            others: of tensors of the same shapes and types, in the same order.
            chosen: a bool scalar on the device of the tensors.
        """
        for integer, own in self.groups.items():
            difference = torch._foreach_sub(others.groups[integer], own)
            torch._foreach_mul_(difference, chosen.to(integer))
            torch._foreach_add_(own, difference)


class SavedTensors:
    """Tensors, and a copy of each.

    Attributes:
        live: the tensors.
        saved: what they were when they were saved last.
    """

    def __init__(self, live: Sequence[Tensor]) -> None:
        self.live = list(live)
        self.saved = [tensor.detach().clone() for tensor in self.live]
        self._live_bits, self._saved_bits = Bits(self.live), Bits(self.saved)

    @torch.no_grad()
    def save(self) -> None:
        """Take copies."""
        if self.live:
            torch._foreach_copy_(self.saved, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        """Take the tensors back to their copies."""
        if self.live:
            torch._foreach_copy_(self.live, self.saved)

    def restore_if(self, chosen: Tensor) -> None:
        """Take them back if a bool scalar on their device says so."""
        self._live_bits.become(self._saved_bits, chosen)
