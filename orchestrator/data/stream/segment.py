"""One execution of Ray Data, and whether its consumer waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, Full, Queue
from time import perf_counter

import numpy as np
import ray.data

from orchestrator.data.batch import Allocate, Batch
from orchestrator.data.ray_rows import hush_ray_data
from orchestrator.data.stream.packing import unpack
from orchestrator.errors import OrchestratorError

#: Share of its time that a consumer waits when it is called starved.
STARVED = 0.25

_CLOSE_SECONDS = 10.0
_POLL_SECONDS = 0.2


class Segment:
    """One running execution of Ray Data, drained by a thread of its own.

    Attributes:
        steps: batches it makes.
        taken: batches its consumer has got.
    """

    def __init__(
        self,
        dataset: Callable[[], ray.data.Dataset],
        steps: int,
        budget: int,
        *,
        allocate: Allocate = np.empty,
        first: bool = False,
    ) -> None:
        """Start making the batches of ``dataset()``, at most ``budget`` of them ahead.

        Args:
            dataset: of one row per task.
            steps: batches it makes.
            budget: batches to keep ready.
            allocate: makes their arrays.
            first: there is none before it, so that whoever takes its first batch has to wait.
        """
        self.steps = steps
        self.taken = 0
        self._first = first
        self._allocate = allocate
        self._since = self._waited = 0.0
        self._queue: Queue[Batch | BaseException] = Queue(budget)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._drain, args=(dataset,), name="ray-batches", daemon=True
        )
        self._thread.start()

    def nears_its_end(self, at_once: int) -> bool:
        """Whether to start what follows.

        Args:
            at_once: batches that all tasks of an execution make at a time.
        """
        left = self.steps - self.taken
        # If starved, when its last tasks run, all but the one in reserve: before that, more beside
        # them would only make Ray start further processes, which import for seconds and are ended
        # when they have been idle for one. Never before half is taken: until then little is known
        # about the consumer.
        return 2 * left <= self.steps and (left <= at_once or not self.starved)

    @property
    def starved(self) -> bool:
        """Whether the consumer has spent much of its time waiting.

        Batches come by the block, so how many of them it had to wait for says little.
        """
        return self._waited > STARVED * (perf_counter() - self._since)

    def take(self) -> Batch:
        """The next batch, waiting for it.

        Raises:
            Exception: whatever ended the execution early.
        """
        begin = perf_counter()
        try:
            item = self._queue.get_nowait()
        except Empty:
            item = self._queue.get()
            if self._first and self.taken == 0:
                # That was for Ray Data to start, and does not count.
                begin = perf_counter()
            else:
                self._waited += perf_counter() - begin
        if isinstance(item, BaseException):
            raise item
        if self.taken == 0:
            self._since = begin
        self.taken += 1
        return item

    def close(self) -> None:
        """Stop the execution and wait for its thread."""
        self._closed.set()
        self._thread.join(_CLOSE_SECONDS)

    def _drain(self, dataset: Callable[[], ray.data.Dataset]) -> None:
        hush_ray_data()
        made = 0
        try:
            # This thread is what fetches ahead. Ray Data would hold back each block until it has
            # the one after it.
            for rows in dataset().iter_batches(
                batch_size=None, batch_format="numpy", prefetch_batches=0
            ):
                for batch in unpack(rows, self._allocate):
                    if not self._put(batch):
                        return
                    made += 1
            if made != self.steps:
                raise OrchestratorError(f"Ray Data made {made} batches instead of {self.steps}")
        # Whatever happens here is the consumer's to see; nobody looks at this thread.
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        """Hand over an item, waiting for a place; False once the consumer is gone."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False
