"""What Ray Train hands each worker as its data, and how many tasks make it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.train

from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.ray_stream import TASK_BYTES, TASK_IMAGES, RayStream

if TYPE_CHECKING:
    from ray.actor import ActorHandle

#: Map tasks of a worker on a node without cores to spare.
MIN_TASKS = 2


class ScheduledDataConfig(ray.train.DataConfig):  # type: ignore[misc]  # Ray is not typed
    """Hands each Ray Train worker its :class:`RayStream`.

    Ray Train calls :meth:`configure` whenever a worker group starts, also after a failure; the
    streams it makes hold no position, since a worker asks for the steps after the commit it
    loaded.
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        prefetch: int = 4,
        tasks: int | None = None,
        worker_cpus: float = 1.0,
        any_node: bool = False,
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
        """
        # Named data sets are only split on request; without, no rank waits for the others here.
        super().__init__(datasets_to_split=[])
        self._plan_ref = ray.put(plan)
        self._total_steps = plan.schedule.total_steps
        self._prefetch = prefetch
        self._tasks = tasks
        self._worker_cpus = worker_cpus
        self._any_node = any_node
        height, width = plan.input_size
        self._image_bytes = height * width * 3
        self._batch_size = plan.schedule.batch_size

    def datasets(self) -> dict[str, ray.data.Dataset]:
        """What a trainer takes as ``datasets``: the schedule, one row per step."""
        return {"train": ray.data.range(self._total_steps)}

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: list[ActorHandle] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, RayStream]]:
        """One stream per rank under each name of ``datasets``."""
        nodes: list[str | None] = [None] * world_size
        if worker_node_ids is not None:
            nodes = list(worker_node_ids)
        task_bytes = max(
            min(TASK_IMAGES * self._image_bytes, TASK_BYTES),
            self._batch_size // world_size * self._image_bytes,
        )
        streams = (
            RayStream(
                self._plan_ref,
                rank=rank,
                world=world_size,
                prefetch=self._prefetch,
                tasks=self._tasks or self._free_tasks(node, nodes, task_bytes),
                node=None if self._any_node else node,
            )
            for rank, node in enumerate(nodes)
        )
        return [dict.fromkeys(datasets, stream) for stream in streams]

    def _free_tasks(self, node: str | None, nodes: Sequence[str | None], task_bytes: int) -> int:
        """Map tasks of a worker on ``node``, one of the ``nodes`` of all workers."""
        resources = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
        own = resources.get(node or "", {})
        cpus = own.get("CPU", 0.0) / nodes.count(node)
        if self._any_node:
            cpus = sum(one.get("CPU", 0.0) for one in resources.values()) / len(nodes)
        return free_tasks(
            cpus - self._worker_cpus,
            # What is made on other nodes is fetched into it as well.
            own.get("object_store_memory", 0.0) / nodes.count(node),
            task_bytes=task_bytes,
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
