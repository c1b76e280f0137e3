"""Gradients in flat buckets of a fixed layout, summed over ranks while backward still runs.

``DistributedDataParallel`` re-buckets after its first step, so that the first step after a resume
adds in another order than the same step of an unbroken run: with three or more ranks that changes
bits. Here the layout is a function of the model alone, and buckets are always sent in the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.training.collective import Collective

_BUCKET_BYTES = 25 * 2**20  # DDP's default: large enough for bandwidth, small enough to overlap.


class _Bucket:
    """Parameters whose gradients share one flat tensor."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        first = parameters[0]
        size = sum(parameter.numel() for parameter in parameters)
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

    Use per step: :meth:`zero`, then one or more backward passes, the last one announced by
    :meth:`expect_last`, then :meth:`finish`. Parameters that got no gradient count as zero.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        collective: Collective,
        *,
        bucket_bytes: int = _BUCKET_BYTES,
    ) -> None:
        self.collective = collective
        self.buckets: list[_Bucket] = []
        self._armed = False
        self._next = 0
        pending: list[nn.Parameter] = []
        held = 0
        # Backward reaches the last layers first, so reverse order lets early buckets fill early.
        for parameter in reversed([p for p in parameters if p.requires_grad]):
            if pending and (held >= bucket_bytes or parameter.dtype != pending[0].dtype):
                self.buckets.append(_Bucket(pending))
                pending, held = [], 0
            pending.append(parameter)
            held += parameter.numel() * parameter.element_size()
        if pending:
            self.buckets.append(_Bucket(pending))
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
            bucket.work = self.collective.sum_async(bucket.flat)
            self._next += 1

    @property
    def flats(self) -> list[Tensor]:
        """The flat gradient tensors, in their fixed order."""
        return [bucket.flat for bucket in self.buckets]

    def zero(self) -> None:
        """Set every gradient to zero before the first backward pass of a step."""
        self._armed = False
        torch._foreach_zero_(self.flats)

    def expect_last(self) -> None:
        """The next backward pass is the step's last: send each bucket as soon as it is full."""
        self._next = 0
        for bucket in self.buckets:
            bucket.waiting = len(bucket.parameters)
        self._armed = self.collective.world > 1

    def finish(self) -> None:
        """Wait until every bucket holds the sum over ranks."""
        if self.collective.world == 1:
            return
        self._armed = False
        for bucket in self.buckets:
            bucket.waiting = 0
        self._send_full_buckets()
        for bucket in self.buckets:
            bucket.work.wait()

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
