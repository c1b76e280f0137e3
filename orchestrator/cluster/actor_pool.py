"""Processes on the cluster that share out work, each with the resources of a training worker."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util import ActorPool

from orchestrator.cluster.connection import connected, is_own_ray
from orchestrator.cluster.nodes import alive_nodes, names_of
from orchestrator.cluster.placement import place
from orchestrator.cluster.survey import Needed, survey
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import ConfigError


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
        if not is_own_ray():
            _look_around(needed, shared)
        options = actor_options(placement.resources_per_worker)
        actor = ray.remote(**options)(worker)
        sent = [ray.put(argument) for argument in arguments]
        pool = ActorPool([actor.remote(*sent, placement.accelerator) for _ in range(workers)])
        yield from pool.map_unordered(lambda process, share: process.run.remote(share), shares)


def _look_around(needed: Sequence[Needed], shared: Path | None) -> None:
    """Refuse nodes that do not see what is read, or where results are to be written."""
    nodes = [node for node in alive_nodes() if node.cpus > 0]
    if shared is None:
        survey(nodes, needed)
        return
    shared.mkdir(parents=True, exist_ok=True)
    marker = shared / f".here-{uuid.uuid4().hex}"
    marker.touch()
    try:
        private = survey(nodes, needed, marker)
    finally:
        marker.unlink(missing_ok=True)
    if private:
        raise ConfigError(
            f"{shared}: workers write their results there, and {names_of(private)} do not see this "
            "folder. Next: name a folder that all nodes share, or use one worker, on this machine"
        )
