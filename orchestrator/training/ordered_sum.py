"""Sums over the virtual shards of a step, added in one order however many ranks compute them.

Floating-point addition is not associative, so the sum over ranks of sums over shards depends on the
number of ranks. Here the running total visits the shards in their order: rank 0 adds its own, in
order, to zero and sends the total to rank 1, which adds its own and sends it on; the last rank's
total is everybody's. The additions are the same for any number of ranks, and so are the bits.

A rank holds the contributions of its own shards until the total arrives; rank 0 needs to hold none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orchestrator.training.collective import Collective


class OrderedSum:
    """Adds up equally shaped lists of tensors, one list a shard.

    Args:
        like: tensors whose shapes, layouts and types the contributions have.
        collective: the ranks; each has the same number of consecutive shards, in rank order.
    """

    def __init__(self, like: Sequence[Tensor], collective: Collective) -> None:
        self._collective = collective
        self._total = [torch.zeros_like(tensor) for tensor in like]
        self._held: list[list[Tensor]] = []

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Take in the contribution of this rank's next shard; it may be overwritten then."""
        if not self._total:
            return
        if self._collective.rank == 0:
            torch._foreach_add_(self._total, list(tensors))
        else:
            self._held.append([tensor.clone() for tensor in tensors])

    @torch.no_grad()
    def finish(self, into: Sequence[Tensor]) -> None:
        """Write the sum over all shards of all ranks to ``into``, and begin anew."""
        if not self._total:
            return
        ranks = self._collective
        if ranks.rank > 0:
            ranks.receive_(self._total, ranks.rank - 1)
            for tensors in self._held:
                torch._foreach_add_(self._total, tensors)
        if ranks.rank < ranks.world - 1:
            ranks.send(self._total, ranks.rank + 1)
        if ranks.world > 1:
            ranks.copy_from_(self._total, ranks.world - 1)
        torch._foreach_copy_(list(into), self._total)
        torch._foreach_zero_(self._total)
        self._held = []
