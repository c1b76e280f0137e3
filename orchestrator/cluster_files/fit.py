"""Whether an experiment fits the nodes that a file describes: node by node, not by sums.

A worker cannot be spread over two nodes: two nodes of 2 CPUs do not run a worker of 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster_files.sheet import Nodes
from orchestrator.config.schema import Experiment

#: Ray's names of devices.
_DEVICES = {"npu": "NPU", "gpu": "GPU"}
#: CPUs that reading needs on some node beside the workers.
_READING = 1.0


def misfit(experiment: Experiment, nodes: Sequence[Nodes]) -> str | None:
    """Why an experiment does not fit, with the arithmetic; None where it does.

    A run takes the nodes that are there when it starts, so those that an autoscaler may add do not
    count.

    Args:
        experiment: to be run.
        nodes: kinds of node, each with its resources.
    """
    message = _misfit(experiment, nodes)
    grown = [replace(kinds, count=max(kinds.count, kinds.most or 0)) for kinds in nodes]
    if message is not None and _misfit(experiment, grown) is None:
        message += (
            "; it would fit all nodes that may be added, but a run takes those that are there"
        )
    return message


def _misfit(experiment: Experiment, nodes: Sequence[Nodes]) -> str | None:
    cluster = experiment.cluster
    kind = cluster.accelerator
    if kind == "auto":
        has = {name for each in nodes if each.count for name in each.resources or {}}
        kind = "npu" if "NPU" in has else "gpu" if "GPU" in has else "cpu"
    each = {"CPU": float(cluster.cpus_per_worker)}
    if kind != "cpu":
        each[_DEVICES[kind]] = 1.0
    workers = _least(cluster.workers)
    machines = [(kinds.name, kinds.resources or {}) for kinds in nodes for _ in range(kinds.count)]
    slots = [_slots(have, each) for _, have in machines]
    reading = max(
        (
            sum(slots) - own + _slots({**have, "CPU": have.get("CPU", 0.0) - _READING}, each)
            for (_, have), own in zip(machines, slots, strict=True)
            if have.get("CPU", 0.0) >= _READING
        ),
        default=0,
    )
    if reading >= workers:
        return None
    worker = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    listed = ", ".join(
        f"{kinds.count} x {kinds.name} ({_text(kinds.resources or {})})"
        for kinds in nodes
        if kinds.count
    )
    room = f"{reading} besides {_READING:g} CPU for reading data" if sum(slots) else "none"
    return (
        f"cluster.workers is {workers}, each of {worker} on one node; of {listed or 'no nodes'} "
        f"there is room for {room}"
    )


def _least(workers: object) -> int:
    """The smallest number of workers of a run."""
    return workers if isinstance(workers, int) else int(getattr(workers, "min", 1))


def _slots(have: Mapping[str, float], each: Mapping[str, float]) -> int:
    return min(int((have.get(name, 0.0) + 1e-9) / amount) for name, amount in each.items())


def _text(resources: Mapping[str, float]) -> str:
    shown = {name: value for name, value in resources.items() if "memory" not in name}
    return ", ".join(f"{value:g} {name}" for name, value in shown.items()) or "nothing"
