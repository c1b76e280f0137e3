"""Sums over the virtual shards of a step, added in one order however many ranks compute them.

Floating-point addition is not associative, so the sum over ranks of sums over shards depends on the
number of ranks. Here every rank owns a slice of what is summed. It is sent that slice of each
shard's contribution (all-to-all), adds them to zero in the order of the shards, and the slices are
gathered again (all-gather). The additions are the same for any number of ranks, and so are the
bits. With as many shards as ranks as many bytes travel as in a ring all-reduce, and both halves run
in the background.

A rank holds what it was sent, for each of its shards as many bytes as are summed; one rank alone
holds the running total and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orchestrator.training.collective import Collective


class FlatSum:
    """Sums one flat tensor over all shards.

    For each of this rank's shards: write :attr:`flat`, then :meth:`send`, then :meth:`wait` before
    it is overwritten. After the last, :meth:`add_up` and :meth:`wait`. All ranks have equally many
    consecutive shards, in rank order, and call in the same order.

    Attributes:
        flat: this rank's contribution, and in the end the sum.
    """

    def __init__(
        self, size: int, *, dtype: torch.dtype, device: torch.device, collective: Collective
    ) -> None:
        self._collective = collective
        # As many elements for every rank; those that nobody asked for stay zero.
        slices = -(-size // collective.world)
        self._whole = torch.zeros(slices * collective.world, dtype=dtype, device=device)
        self.flat = self._whole[:size]
        self._total = torch.zeros(slices, dtype=dtype, device=device)
        #: By shard of a rank: what each rank sent, (world, slice).
        self._received: list[Tensor] = []
        self._sent = 0
        self._work: Any = None

    @torch.no_grad()
    def send(self) -> None:
        """Start handing out the contribution of this rank's next shard."""
        if self._collective.world == 1:
            self._total.add_(self._whole)
            return
        if self._sent == len(self._received):
            self._received.append(torch.empty_like(self._whole))
        self._work = self._collective.exchange_async(self._received[self._sent], self._whole)
        self._sent += 1

    @torch.no_grad()
    def add_up(self) -> None:
        """Add what was sent, and start gathering the sum into :attr:`flat`."""
        if self._collective.world == 1:
            self._whole.copy_(self._total)
            self._total.zero_()
            return
        self.wait()
        self._total.zero_()
        received = [
            whole.view(self._collective.world, -1) for whole in self._received[: self._sent]
        ]
        for rank in range(self._collective.world):
            for slices in received:
                self._total.add_(slices[rank])
        self._work = self._collective.gather_async(self._whole, self._total)
        self._sent = 0

    def wait(self) -> None:
        """Wait for what was started last."""
        if self._work is not None:
            self._work.wait()
            self._work = None


class OrderedSum:
    """Adds up equally shaped lists of tensors, one list a shard.

    Args:
        like: tensors whose shapes and types the contributions have.
        collective: the ranks; each has the same number of consecutive shards, in rank order.
    """

    def __init__(self, like: Sequence[Tensor], collective: Collective) -> None:
        self._sums: list[FlatSum] = []
        self._views: list[Tensor] = list(like)
        for dtype in dict.fromkeys(tensor.dtype for tensor in like):
            places = [i for i, tensor in enumerate(like) if tensor.dtype == dtype]
            sizes = [like[i].numel() for i in places]
            device = like[places[0]].device
            flat = FlatSum(sum(sizes), dtype=dtype, device=device, collective=collective)
            self._sums.append(flat)
            for i, part in zip(places, torch.split(flat.flat, sizes), strict=True):
                self._views[i] = part.view(like[i].shape)

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Take in the contribution of this rank's next shard; it may be overwritten then."""
        if not self._sums:
            return
        self._wait()
        torch._foreach_copy_(self._views, list(tensors))
        for flat in self._sums:
            flat.send()

    @torch.no_grad()
    def finish(self, into: Sequence[Tensor]) -> None:
        """Write the sum over all shards of all ranks to ``into``, and begin anew."""
        if not self._sums:
            return
        for flat in self._sums:
            flat.add_up()
        self._wait()
        torch._foreach_copy_(list(into), self._views)

    def _wait(self) -> None:
        for flat in self._sums:
            flat.wait()
