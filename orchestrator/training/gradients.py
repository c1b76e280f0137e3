"""Gradients in flat buckets of a fixed layout, summed over ranks while backward still runs.

``DistributedDataParallel`` re-buckets after its first step, so that the first step after a resume
adds in another order than the same step of an unbroken run: with three or more ranks that changes
bits. Here the layout is a function of the model alone, and buckets are always sent in the same
order.

Without virtual shards the backend adds, in an order of its own. With them the shards' gradients are
added in the order of the shards, see :mod:`orchestrator.training.ordered_sum`: a bucket is sent out
as soon as it is full, and while the next one fills, its sum is made and gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.training.collective import Collective
from orchestrator.training.ordered_sum import FlatSum

_BUCKET_BYTES = 25 * 2**20  # DDP's default: large enough for bandwidth, small enough to overlap.


class _Bucket:
    """Parameters whose gradients share one flat tensor."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], collective: Collective, *, ordered: bool
    ) -> None:
        first = parameters[0]
        size = sum(parameter.numel() for parameter in parameters)
        self.sum: FlatSum | None = None
        if ordered:
            self.sum = FlatSum(size, dtype=first.dtype, device=first.device, collective=collective)
            self.flat = self.sum.flat
        else:
            self.flat = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.parameters = list(parameters)
        self.views: list[Tensor] = []
        offset = 0
        for parameter in parameters:
            # Strides of the parameter, channels_last included: autograd adds in place into what it
            # finds, and mixed layouts would make that a strided copy.
            view = self.flat.as_strided(parameter.size(), parameter.stride(), offset)
            self.views.append(view)
            offset += parameter.numel()
        self.waiting = 0
        self.work: Any = None


class Gradients:
    """Owns every ``parameter.grad`` of a model as a view into flat buckets.

    Use per step: for each of this rank's shards :meth:`zero`, then one or more backward passes, the
    last one announced by :meth:`expect_last`, then :meth:`end_shard`; in the end :meth:`finish`.
    Without shards a rank's share of the batch counts as one. Parameters that got no gradient count
    as zero.

    Args:
        parameters: of the model; those that do not train are left out.
        collective: the ranks.
        ordered: whether gradients are added in the order of the shards.
        bucket_bytes: size at which a bucket is closed.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        collective: Collective,
        *,
        ordered: bool = False,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        self.collective = collective
        self.buckets: list[_Bucket] = []
        self._ordered = ordered
        self._armed = self._last = False
        self._next = 0
        pending: list[nn.Parameter] = []
        held = 0
        # Backward reaches the last layers first, so reverse order lets early buckets fill early.
        for parameter in reversed([p for p in parameters if p.requires_grad]):
            if pending and (held >= bucket_bytes or parameter.dtype != pending[0].dtype):
                self.buckets.append(_Bucket(pending, collective, ordered=ordered))
                pending, held = [], 0
            pending.append(parameter)
            held += parameter.numel() * parameter.element_size()
        if pending:
            self.buckets.append(_Bucket(pending, collective, ordered=ordered))
        for bucket in self.buckets:
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view
                if collective.world > 1:
                    parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                        self._hook(bucket)
                    )

    def _hook(self, bucket: _Bucket) -> Any:
        def ready(_: Tensor) -> None:
            if self._armed:
                bucket.waiting -= 1
                self._send_full_buckets()

        return ready

    def _send_full_buckets(self) -> None:
        while self._next < len(self.buckets) and self.buckets[self._next].waiting <= 0:
            bucket = self.buckets[self._next]
            if bucket.sum is None:
                bucket.work = self.collective.sum_async(bucket.flat)
            else:
                bucket.sum.send()
                # The one before has had the time that this one took to fill. Whenever a bucket is
                # sent, all ranks start the same operations in the same order.
                self._add_up(self._next - 1)
            self._next += 1

    def _add_up(self, index: int) -> None:
        """Have a bucket that was sent for the last time added up."""
        bucket = self.buckets[index].sum
        if self._last and index >= 0 and bucket is not None:
            bucket.add_up()

    @property
    def flats(self) -> list[Tensor]:
        """The flat gradient tensors, in their fixed order."""
        return [bucket.flat for bucket in self.buckets]

    def zero(self) -> None:
        """Set every gradient to zero before the first backward pass of a shard."""
        self._armed = False
        for bucket in self.buckets:
            if bucket.sum is not None:
                bucket.sum.wait()
        torch._foreach_zero_(self.flats)

    def expect_last(self, *, last_shard: bool = True) -> None:
        """The next backward pass is the shard's last: send each bucket as soon as it is full.

        Args:
            last_shard: no other shard of this rank follows in this step.
        """
        self._next = 0
        self._last = last_shard
        for bucket in self.buckets:
            bucket.waiting = len(bucket.parameters)
        self._armed = self.collective.world > 1 or self._ordered

    def end_shard(self) -> None:
        """The shard's last backward pass is over: send what is left of it."""
        if not self._armed:
            return
        self._armed = False
        for bucket in self.buckets:
            bucket.waiting = 0
        self._send_full_buckets()
        self._add_up(len(self.buckets) - 1)

    def finish(self) -> None:
        """Wait until every bucket holds the sum over all shards."""
        self.end_shard()
        for bucket in self.buckets:
            if bucket.sum is not None:
                bucket.sum.wait()
            elif bucket.work is not None:
                bucket.work.wait()
                bucket.work = None

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Global 2-norm, a scalar tensor; not finite when any gradient is not."""
        norms = torch._foreach_norm(self.flats)
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @torch.no_grad()
    def clip_(self, norm: Tensor, limit: float) -> None:
        """Scale all gradients so that their norm is at most ``limit``."""
        scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
        torch._foreach_mul_(self.flats, scale)
