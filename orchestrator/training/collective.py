"""Talking to the other ranks: one object that also works when there are none."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


#: Hang timeouts after which a collective gives up by itself. While rank 0 works alone, and may take
#: long over it, the others wait for it in one.
_TIMEOUTS = 20
#: Of tensors that rank 0 hands out at a time.
_PARCEL_BYTES = 32 << 20


def collective_timeout(hang_timeout: float | None) -> timedelta | None:
    """The backstop where no progress can be seen from outside; None for the backend's own.

    Args:
        hang_timeout: ``cluster.hang_timeout``, in seconds.
    """
    return None if hang_timeout is None else timedelta(seconds=_TIMEOUTS * hang_timeout)


class Collective:
    """The ranks of one run; a world of one needs no process group.

    Objects travel over a gloo group of their own, because nccl and hccl move device tensors only.

    Args:
        device: of this rank.
        timeout: of that group; None for torch's.
    """

    def __init__(self, device: torch.device, timeout: timedelta | None = None) -> None:
        self.device = device
        self.distributed = dist.is_initialized()
        self.rank = dist.get_rank() if self.distributed else 0
        self.world = dist.get_world_size() if self.distributed else 1
        self._objects: Any = None
        if self.distributed:
            gloo = dist.get_backend() == "gloo"
            self._objects = (
                dist.group.WORLD if gloo else dist.new_group(backend="gloo", timeout=timeout)
            )

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs, commits and results."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` over all ranks in place, in the fixed order of the backend."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_async(self, tensor: Tensor) -> Any:
        """Start summing ``tensor`` in place; call ``wait()`` on what is returned."""
        return dist.all_reduce(tensor, async_op=True)

    def exchange_async(self, received: Tensor, sent: Tensor) -> Any:
        """Start sending each rank its part of ``sent``; call ``wait()`` on what is returned.

        Both are flat, contiguous and divided evenly among the ranks; in the end part ``r`` of
        ``received`` is what rank ``r`` sent here.
        """
        return dist.all_to_all_single(received, sent, async_op=True)

    def gather_async(self, whole: Tensor, part: Tensor) -> Any:
        """Start collecting every rank's ``part``, in rank order, into ``whole`` on each of them."""
        return dist.all_gather_into_tensor(whole, part, async_op=True)

    def ask_async(self, word: bool) -> tuple[Tensor, Any]:
        """Start finding out whether any rank says ``word``, without the device.

        Returns:
            A number that is above zero if one does, once ``wait()`` of the other has returned.
        """
        said = torch.tensor(int(word))
        return said, dist.all_reduce(said, group=self._objects, async_op=True)

    def gather(self, value: T) -> list[T] | None:
        """Values of all ranks by rank, on rank 0; None elsewhere."""
        if self.world == 1:
            return [value]
        gathered: list[Any] | None = [None] * self.world if self.is_main else None
        dist.gather_object(value, gathered, dst=0, group=self._objects)
        return gathered

    def from_main(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._objects)
        received: T = box[0]
        return received

    def copy_from_main_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors``, all on the host or all on this rank's device, with rank 0's.

        Every bit is rank 0's. Thousands of small ones travel together: each broadcast of its own
        would cost half a millisecond.
        """
        if self.world == 1:
            return
        with torch.no_grad():
            for together in _parcels(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in together])
                dist.broadcast(flat, src=0, group=self._objects if flat.is_cpu else None)
                if not self.is_main:
                    parts = torch.split(flat, [tensor.numel() for tensor in together])
                    for tensor, part in zip(together, parts, strict=True):
                        tensor.copy_(part.view(tensor.shape))


def _parcels(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type, in their order, as many as make :data:`_PARCEL_BYTES`."""
    begun: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    size: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        begun[tensor.dtype].append(tensor)
        size[tensor.dtype] += tensor.nbytes
        if size[tensor.dtype] >= _PARCEL_BYTES:
            del size[tensor.dtype]
            yield begun.pop(tensor.dtype)
    yield from begun.values()
