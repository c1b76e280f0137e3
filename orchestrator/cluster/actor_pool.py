"""Processes on the cluster that share out work, each with the resources of a training worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from orchestrator.cluster.connection import connected
from orchestrator.cluster.placement import place
from orchestrator.cluster.survey import Needed, look_around
from orchestrator.config.schema import ClusterConfig


def actor_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """What ``ray.remote`` is told for an actor that reserves the resources of a worker.

    Args:
        resources: amounts by the names that Ray gives them, such as CPU, GPU and NPU.
    """
    amounts = dict(resources)
    return {
        "num_cpus": amounts.pop("CPU"),
        "num_gpus": amounts.pop("GPU", 0),
        "resources": amounts,
    }


def on_workers(
    cluster: ClusterConfig,
    worker: type,
    arguments: tuple[Any, ...],
    shares: Iterable[Any],
    *,
    workers: int,
    needed: Sequence[Needed],
    shared: Path | None = None,
) -> Iterator[Any]:
    """Results of shares as the workers finish them, in any order.

    Args:
        cluster: where they run.
        worker: made in each process from ``arguments`` and the
            :class:`~orchestrator.accelerators.Accelerator`; its ``run`` is given one share.
        arguments: sent to the cluster once.
        shares: of the work.
        workers: processes.
        needed: what each node that may get one has to see.
        shared: folder that they write to and this process reads from.

    Raises:
        ConfigError: more workers than the cluster holds, or a node does not see what it needs.
    """
    config = cluster.model_copy(update={"workers": workers})
    with connected(config):
        placement = place(config)
        look_around(needed, shared)
        options = actor_options(placement.resources_per_worker)
        actor = ray.remote(**options)(worker)
        sent = [ray.put(argument) for argument in arguments]
        pool = ActorPool([actor.remote(*sent, placement.accelerator) for _ in range(workers)])
        yield from pool.map_unordered(lambda process, share: process.run.remote(share), shares)
