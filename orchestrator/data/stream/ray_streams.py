"""The stream of each worker through Ray Data, and how many tasks make it."""

from __future__ import annotations

import ray

from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.no_actors import start_no_actors
from orchestrator.data.stream.ray_stream import TASK_BYTES, TASK_IMAGES, RayStream

#: Map tasks of a worker on a node without cores to spare.
MIN_TASKS = 2


class RayStreams:
    """Makes each worker's :class:`RayStream`; small to pickle.

    Workers make theirs themselves. Ray Train would have an actor do it, for whose process every
    start of workers would wait. Streams hold no position: a worker asks for the steps after the
    commit that it loaded.
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        prefetch: int = 4,
        tasks: int | None = None,
        worker_cpus: float = 1.0,
        any_node: bool = False,
        alone: bool = False,
    ) -> None:
        """Put ``plan`` into the object store; Ray must have been initialised.

        Args:
            plan: what is in which batch.
            prefetch: batches per worker that are made ahead, at least.
            tasks: map tasks per worker that work at a time on a node; for a worker that waits there
                is one more in reserve. None for as many as its node has free cores, see
                :func:`free_tasks`.
            worker_cpus: cores that a worker keeps busy.
            any_node: tasks run on all nodes in turn, and not on that of their worker.
            alone: Ray was started for this run, or its sweep, and has no autoscaler.
        """
        self._plan_ref = ray.put(plan)
        self._prefetch = prefetch
        self._tasks = tasks
        self._worker_cpus = worker_cpus
        self._any_node = any_node
        self._alone = alone
        height, width = plan.input_size
        self._image_bytes = height * width * 3
        self._batch_size = plan.schedule.batch_size

    def stream(
        self, rank: int = 0, world: int = 1, *, node: str | None = None, on_node: int = 1
    ) -> RayStream:
        """One worker's.

        Args:
            rank, world: whose share it yields.
            node: id of the node that the worker is on; None where it does not matter.
            on_node: workers on that node.
        """
        if self._alone:
            start_no_actors()
        return RayStream(
            self._plan_ref,
            rank=rank,
            world=world,
            prefetch=self._prefetch,
            tasks=self._tasks or self._free_tasks(world, node, on_node),
            node=None if self._any_node else node,
        )

    def _free_tasks(self, world: int, node: str | None, on_node: int) -> int:
        """Map tasks of a worker that shares ``node`` with ``on_node - 1`` others."""
        resources = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
        own = resources.get(node or "", {})
        cpus = own.get("CPU", 0.0) / on_node
        if self._any_node:
            cpus = sum(one.get("CPU", 0.0) for one in resources.values()) / world
        return free_tasks(
            cpus - self._worker_cpus,
            # What is made on other nodes is fetched into it as well.
            own.get("object_store_memory", 0.0) / on_node,
            task_bytes=max(
                min(TASK_IMAGES * self._image_bytes, TASK_BYTES),
                self._batch_size // world * self._image_bytes,
            ),
        )


def free_tasks(cpus: float, store: float, *, task_bytes: int) -> int:
    """Map tasks of one worker: as many as there are cores for.

    Two at least, as many as a worker waits for on a small node; and no more than the object store
    has room for, twice over: what they make is there until it is taken.

    Args:
        cpus: that are free for this worker's tasks.
        store: bytes of its node's object store for this worker.
        task_bytes: that a task makes at most.
    """
    return max(MIN_TASKS, int(min(cpus, store / (2 * task_bytes))))
