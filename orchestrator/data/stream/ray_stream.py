"""Batches made by Ray Data, in order, beginning at any step.

The rows that Ray Data processes are the schedule itself: step numbers. Its map stage reads, decodes
and augments the images of a step and hands back the rank's whole batch, and ``preserve_order``
keeps the rows in sequence, so each rank gets exactly the batches a
:class:`~orchestrator.data.stream.local.LocalStream` would make. ``streaming_split`` and
``random_shuffle`` are not used: they lose the order.

A run is cut into segments of steps, each one execution of Ray Data, and the next segment is started
while the last one is being consumed. That hides the start of an execution (0.3 to 1 s), which an
execution per epoch would not for a small data set. A segment's batches fit a memory budget, so that
it can run to its end however slow the consumer is: a Ray Data executor under back-pressure polls
without pause and takes more than half a core from the training process (Ray 2.60). Only for a
consumer that spends its time waiting, which causes no back-pressure while it does, segments are
long.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import Any, TypeAlias
from uuid import uuid4

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import TaskPoolStrategy

from orchestrator.data.batch import Allocate, Batch
from orchestrator.data.ray_rows import Rows, rows_or_error
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import EvalCache, in_order
from orchestrator.data.stream.packing import pack
from orchestrator.data.stream.segment import Segment
from orchestrator.data.stream.slots import DATA_TASK, ROLE, slot
from orchestrator.memory import keep_freed_memory

#: Batches of a segment together, as long as the consumer is the slower side.
SEGMENT_BYTES = 128 << 20
#: Steps of one segment at most, and of each one while the consumer waits. Few are better: in the
#: first second of an execution of that size Ray Data runs one task at a time (Ray 2.60).
SEGMENT_STEPS = 1000
#: Images one task prepares at most, and their bytes: enough that the cost of a task (40 ms of CPU
#: time) does not count, and no more than Ray Data keeps in one block.
TASK_IMAGES, TASK_BYTES = 512, 128 << 20
#: How many times as long the next tasks are where training begins.
_GROWTH = 4
#: Logical CPUs of one task. The cluster must have a few to spare for each worker, or training waits
#: for its first batch for ever.
_TASK_CPUS = 0.25
#: Label by which Ray knows a node.
_NODE_LABEL = "ray.io/node-id"

#: Plan, number, rank, world and whose arrays to fill.
Make: TypeAlias = Callable[[BatchPlan, int, int, int, Batch | None], Batch]


class RayStream:
    """One rank's batches through Ray Data; made by
    :class:`~orchestrator.data.stream.ray_streams.RayStreams`.

    Attributes:
        rank, world: whose share this stream yields.
        prefetch: batches that a segment holds at least.
        tasks: map tasks that work at a time for this rank on a node.
        node: id of the node that tasks run on while it has CPUs for them; None for all in turn.
        allocate: makes the arrays of batches, into which they are copied from shared memory.
        plan_ref: what is in which batch, in the object store.
        name: of this stream, like no other's.
    """

    def __init__(
        self,
        plan: ray.ObjectRef[BatchPlan],
        *,
        rank: int,
        world: int,
        prefetch: int,
        tasks: int,
        node: str | None = None,
    ) -> None:
        self.rank = rank
        self.world = world
        self.prefetch = prefetch
        self.tasks = tasks
        self.node = node
        self.allocate: Allocate = np.empty
        self.plan_ref = plan
        self.name = uuid4().hex
        self._eval_cache: EvalCache | None = None
        self._expected: tuple[range, Segment] | None = None

    def expect(self, start_step: int, stop_step: int) -> None:
        """Begin what :meth:`train_batches` of the same steps will be asked for.

        Ray Data takes seconds to make its first batch, in which the rest of a start can be done.
        """
        if start_step < stop_step:
            steps = range(start_step, min(start_step + self._budget_steps(), stop_step))
            segment = self._segment(BatchPlan.train_batch, steps, starved=False, first=True)
            self._expected = steps, segment

    def close(self) -> None:
        """End what was expected and not asked for."""
        if self._expected is not None:
            self._expected[1].close()
            self._expected = None

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This rank's batches for steps ``start_step <= step < stop_step``, in order.

        Raises:
            DataError: an image and all its replacements could not be decoded.
            OrchestratorError: a batch of another step than expected arrived.
        """
        batches = self._batches(BatchPlan.train_batch, start_step, stop_step)
        return in_order(batches, start_step, stop_step)

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation images, each exactly once."""
        plan = _plan(self.plan_ref)
        if self._eval_cache is None:
            self._eval_cache = EvalCache(plan, self.world)
        count = plan.eval_batch_count(self.world)
        return self._eval_cache.batches(lambda: self._batches(BatchPlan.eval_batch_at, 0, count))

    def _batches(self, make: Make, start: int, stop: int) -> Generator[Batch, None, None]:
        """Batches ``start .. stop - 1``, segment after segment."""
        budget = self._budget_steps()
        at_once = self.tasks * self._task_steps()
        running: deque[Segment] = deque()
        begun = done = start
        starved = False
        if make is BatchPlan.train_batch and self._expected is not None:
            steps, segment = self._expected
            if steps.start == start and steps.stop <= stop:
                running.append(segment)
                begun, self._expected = steps.stop, None
            self.close()
        try:
            while done < stop:
                follows = len(running) == 1 and running[0].nears_its_end(at_once)
                if begun == done or (follows and begun < stop):
                    end = min(begun + (SEGMENT_STEPS if starved else budget), stop)
                    steps = range(begun, end)
                    running.append(
                        self._segment(make, steps, starved=starved, first=begun == start)
                    )
                    begun = end
                yield running[0].take()
                done += 1
                starved = running[0].starved
                if running[0].taken == running[0].steps:
                    running.popleft().close()
        finally:
            for segment in running:
                segment.close()

    def _segment(self, make: Make, steps: range, *, starved: bool, first: bool) -> Segment:
        """One that runs.

        Args:
            make, steps, starved: see :meth:`_dataset`.
            first: there is none before it.
        """
        begins = first and make is BatchPlan.train_batch
        return Segment(
            partial(self._dataset, make, steps, starved=starved, begins=begins),
            len(steps),
            self._budget_steps(),
            # Which may be known only after this.
            allocate=lambda shape, dtype: self.allocate(shape, dtype),
            first=first,
        )

    def _cuts(self, first: int, end: int, *, starved: bool, begins: bool = False) -> list[range]:
        """Batches ``first .. end - 1``, cut into what one task makes of them.

        A task hands over all its batches at its end, so where training ``begins`` the first ones
        make one each. For a consumer that waits there is one task more than otherwise, which begins
        when another ends, and the first of them are short by different amounts: Ray Data looks for
        finished tasks ten times a second, and they should not all end, and wait to be found out, at
        the same time.
        """
        longest = self._task_steps()
        cuts: list[range] = []
        if not starved:
            longest = min(longest, -(-(end - first) // self.tasks))
            length = 1 if begins else longest
            while first < end:
                cuts.append(range(first, min(first + length, end)))
                first = cuts[-1].stop
                if len(cuts) % self.tasks == 0:
                    length = min(_GROWTH * length, longest)
            return cuts
        while first < end:
            share = min(1.0, (len(cuts) + 1) / (self.tasks + 1))
            stop = min(first + max(1, round(longest * share)), end)
            cuts.append(range(first, stop))
            first = stop
        return cuts

    def _dataset(
        self, make: Make, steps: range, *, starved: bool, begins: bool = False
    ) -> ray.data.Dataset:
        """The batches of ``steps``, one per row, not yet begun."""
        work = partial(
            _make_rows,
            plan_ref=self.plan_ref,
            make=make,
            rank=self.rank,
            world=self.world,
            slots=partial(slot, self.name, self.tasks),
        )
        cuts = self._cuts(steps.start, steps.stop, starved=starved, begins=begins)
        # One in reserve where the consumer waits. Where there are no more than two, the second
        # one's process would start beside all else that does.
        at_once = self.tasks + starved - (begins and self.tasks == 2)
        # Blocks rather than ``range``, whose read tasks would want a CPU each.
        blocks = [pa.table({"number": np.array(cut)}) for cut in cuts]
        dataset = ray.data.from_blocks(blocks).map_batches(
            work,
            batch_size=None,
            batch_format="numpy",
            compute=TaskPoolStrategy(size=min(at_once, len(blocks))),
            num_cpus=_TASK_CPUS,
            runtime_env={"env_vars": {ROLE: DATA_TASK}},
            **self._where(),
        )
        dataset.context.execution_options.preserve_order = True
        # Ray Data learns only after a second how much memory it may use, and until then runs one
        # task at a time. A segment within the stream's own budget needs no such limit.
        dataset.context.op_resource_reservation_enabled = len(steps) > self._budget_steps()
        dataset.context.enable_progress_bars = False
        return dataset

    def _where(self) -> dict[str, Any]:
        """Options of tasks that keep batches from crossing the network.

        On a node whose CPUs are all reserved tasks would wait for ever, so they go elsewhere then.
        Without any, Ray Data gives the nodes work in turn.
        """
        if self.node is None:
            return {}
        here: dict[str, str] = {_NODE_LABEL: self.node}
        return {"label_selector": here, "fallback_strategy": [{"label_selector": {}}]}

    def _task_steps(self) -> int:
        """Steps that one map task prepares."""
        plan = _plan(self.plan_ref)
        images = min(TASK_IMAGES, TASK_BYTES // (plan.input_size[0] * plan.input_size[1] * 3))
        return max(1, images // plan.schedule.rank_batch(self.world))

    def _budget_steps(self) -> int:
        """Steps whose batches fit the memory budget."""
        plan = _plan(self.plan_ref)
        height, width = plan.input_size
        batch_bytes = plan.schedule.rank_batch(self.world) * height * width * 3
        return min(max(SEGMENT_BYTES // batch_bytes, self.prefetch), SEGMENT_STEPS)


@lru_cache(maxsize=2)
def _plan(ref: ray.ObjectRef[BatchPlan]) -> BatchPlan:
    """The plan, its arrays mapped from shared memory; kept for the next task of this process."""
    plan: BatchPlan = ray.get(ref)
    return plan


def _make_rows(
    rows: Rows,
    *,
    plan_ref: ray.ObjectRef[BatchPlan],
    make: Make,
    rank: int,
    world: int,
    slots: Callable[[], AbstractContextManager[None]],
) -> Rows:
    """The map stage: a column of step numbers to one packed batch per row."""
    keep_freed_memory()
    plan, numbers = _plan(plan_ref), rows["number"].tolist()
    with slots():
        return rows_or_error(
            lambda: pack(lambda i, into: make(plan, i, rank, world, into), numbers)
        )
