"""Whether an experiment fits the nodes that a file describes: node by node, not by sums.

A worker cannot be spread over two nodes: two nodes of 2 CPUs do not run a worker of 3. The rules
are those by which a run is refused when it starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.cluster_files.sheet import Nodes
from orchestrator.config.schema import ClusterConfig, Experiment

#: Ray's names of devices.
_DEVICES = {"npu": "NPU", "gpu": "GPU"}
#: CPUs that reading needs beside the workers.
_READING = 1.0
_TINY = 1e-6


def misfit(experiment: Experiment, nodes: Sequence[Nodes]) -> str | None:
    """Why an experiment does not fit, with the arithmetic; None where it does.

    A run takes the nodes that are there when it starts, so those that an autoscaler may add do not
    count.

    Args:
        experiment: to be run.
        nodes: kinds of node, each with its resources.
    """
    cluster = experiment.cluster
    there = [kinds for kinds in nodes if kinds.count]
    message = _misfit(cluster, there)
    grown = [replace(kinds, count=max(kinds.count, kinds.most or 0)) for kinds in nodes]
    if message is not None and _misfit(cluster, grown) is None:
        message += "; it would fit with those that may be added, and a run takes what is there"
    return message


def _misfit(cluster: ClusterConfig, nodes: Sequence[Nodes]) -> str | None:
    kind = cluster.accelerator
    if kind == "auto":
        has = {name for each in nodes for name in each.resources or {}}
        kind = "gpu" if "GPU" in has else "npu" if "NPU" in has else "cpu"
    each = {"CPU": float(cluster.cpus_per_worker)}
    if kind != "cpu":
        each[_DEVICES[kind]] = 1.0
    wanted = _wanted(cluster, each)
    listed = "; ".join(f"{kinds.count} x {kinds.name} ({_text(kinds)})" for kinds in nodes)
    for name, amount in each.items():
        spare = _READING if name == "CPU" else 0.0
        needed = cluster.least_workers * amount + spare
        total = sum(kinds.count * (kinds.resources or {}).get(name, 0.0) for kinds in nodes)
        if needed > total + _TINY:
            reading = f" + {spare:g} {name} for reading data" if spare else ""
            return (
                f"{wanted}{reading} = {needed:g} {name}, and there are {total:g}: "
                f"{listed or 'no nodes'}"
            )
    # By kind, not by node: a slip of the pen asks for millions.
    rooms = [
        (_room(kinds.resources or {}, each), kinds.count)
        for kinds in nodes
        if _takes(cluster, kinds) and kinds.count
    ]
    fitting = {
        "strict_pack": max((room for room, _ in rooms), default=0),
        "strict_spread": sum(count for room, count in rooms if room),
    }.get(cluster.placement, sum(room * count for room, count in rooms))
    if fitting >= cluster.least_workers:
        return None
    return f"{wanted}, and a worker has to be on one node; there is room for {fitting}: {listed}"


def _wanted(cluster: ClusterConfig, each: Mapping[str, float]) -> str:
    """What is asked for, in words."""
    worker = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    how = {
        "strict_pack": " on one node",
        "strict_spread": " each on a node of its own",
    }.get(cluster.placement, "")
    labels = [f"{key}: {value}" for key, value in cluster.labels.items()]
    which = ", ".join(filter(None, [cluster.accelerator_type, *labels]))
    return f"{cluster.least_workers} workers x {worker}{how}" + (f" with {which}" if which else "")


def _takes(cluster: ClusterConfig, kinds: Nodes) -> bool:
    """Whether a worker may be put on nodes of a kind, whose type a file may not say."""
    kind = cluster.accelerator_type
    typed = kind is None or kinds.accelerator_type in (None, kind)
    return typed and all(kinds.labels.get(key) == value for key, value in cluster.labels.items())


def _room(have: Mapping[str, float], each: Mapping[str, float]) -> int:
    return min(int(have.get(name, 0.0) / amount + _TINY) for name, amount in each.items())


def _text(kinds: Nodes) -> str:
    shown = {name: value for name, value in (kinds.resources or {}).items() if "memory" not in name}
    return ", ".join(f"{value:g} {name}" for name, value in shown.items()) or "nothing"
