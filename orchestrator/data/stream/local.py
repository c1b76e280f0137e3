"""Batches made in this process, a few ahead of their consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np

from orchestrator.data.batch import Allocate, Batch
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.errors import OrchestratorError

#: Evaluation batches of a process that together are no larger than this are made once and kept:
#: they are the same in every epoch.
EVAL_CACHE_BYTES = 256 << 20


class LocalStream:
    """One rank's batches without Ray: the bare engine, tests and debugging.

    OpenCV and NumPy release the interpreter lock, so a thread is enough to hide decoding.

    Attributes:
        plan: what is in which batch.
        rank, world: whose share this stream yields.
        prefetch: batches that are made ahead.
        allocate: makes the arrays of the batches that are trained on.
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        rank: int = 0,
        world: int = 1,
        prefetch: int = 4,
        streams: int = 1,
    ) -> None:
        """Args: ``streams`` is how many of this world share the process and its memory."""
        self.plan = plan
        self.rank = rank
        self.world = world
        self.prefetch = prefetch
        self.allocate: Allocate = np.empty
        self._eval_cache = EvalCache(plan, world, streams=streams)

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This rank's batches for steps ``start_step <= step < stop_step``, in order.

        Raises:
            DataError: an image and all its replacements could not be decoded.
        """

        def make(step: int) -> Batch:
            plan = self.plan
            if self.allocate is np.empty:
                return plan.train_batch(step, self.rank, self.world)
            images = plan.schedule.rank_batch(self.world)
            size = plan.view(step).size
            into = Batch.unfilled(images, size, plan.box_slots, self.allocate)
            return plan.train_batch(step, self.rank, self.world, into)

        batches = _ahead(make, range(start_step, stop_step), self.prefetch)
        return in_order(batches, start_step, stop_step)

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation images, each exactly once."""

        def make(index: int) -> Batch:
            return self.plan.eval_batch_at(index, self.rank, self.world)

        count = self.plan.eval_batch_count(self.world)
        return self._eval_cache.batches(lambda: _ahead(make, range(count), self.prefetch))


def _ahead(
    make: Callable[[int], Batch], indices: Iterable[int], prefetch: int
) -> Generator[Batch, None, None]:
    """``make(i)`` for each index, in order, up to ``prefetch`` of them made ahead by a thread."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
    pending: deque[Future[Batch]] = deque()
    try:
        for index in indices:
            pending.append(pool.submit(make, index))
            if len(pending) > prefetch:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_order(
    batches: Generator[Batch, None, None], start_step: int, stop_step: int
) -> Iterator[Batch]:
    """Pass on batches, refusing any but those of ``start_step .. stop_step - 1`` in turn.

    Closing it, as leaving a loop over it does, closes ``batches``.

    Raises:
        OrchestratorError: another step's batch came, or another number of them.
    """
    expected = start_step
    with closing(batches):
        for batch in batches:
            if batch.step != expected:
                raise OrchestratorError(
                    f"data stream: got the batch of step {batch.step}, expected {expected}"
                )
            expected += 1
            yield batch
    if expected != stop_step:
        raise OrchestratorError(
            f"data stream: {expected - start_step} batches came from step {start_step} on, "
            f"expected {stop_step - start_step}"
        )


class EvalCache:
    """Keeps a rank's evaluation batches after the first pass when they are small.

    Attributes:
        enabled: whether they are small enough.
    """

    def __init__(self, plan: BatchPlan, world: int, *, streams: int = 1) -> None:
        """Args: ``streams`` is how many ranks' batches this process keeps."""
        height, width = plan.input_size
        images = plan.eval_batch_count(world) * plan.eval_batch * streams
        self.enabled = images * height * width * 3 <= EVAL_CACHE_BYTES
        self._kept: list[Batch] | None = None

    def batches(self, make_all: Callable[[], Generator[Batch, None, None]]) -> Iterator[Batch]:
        """All batches: from memory when they are there, else from ``make_all``."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Batch] = []
        with closing(make_all()) as made:
            for batch in made:
                if self.enabled:
                    kept.append(batch)
                yield batch
        if self.enabled:
            self._kept = kept
