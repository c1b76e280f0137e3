"""What fits on the nodes of a Ray cluster: devices, threads, and where a run evaluates."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.accelerators import Accelerator, from_resources
from orchestrator.cluster.nodes import ACCELERATOR_TYPE, Node, alive_nodes, free_resources
from orchestrator.cluster.own_ray import OWN
from orchestrator.config.schema import ClusterConfig, Experiment
from orchestrator.errors import ConfigError, PreemptedError

#: How long a run waits for others to leave room, when it says so, and how often it looks.
ROOM_SECONDS, _MOMENT_SECONDS, _POLL_SECONDS = 600.0, 5.0, 0.5
#: Reading and augmenting needs at least this many CPUs beside the training workers.
DATA_CPUS = 1.0
#: Nodes that a message lists one by one.
_LISTED = 6
#: Amounts of a resource are added up in binary fractions.
_TINY = 1e-6


@dataclass(frozen=True)
class Placement:
    """How the workers of one run sit on the cluster.

    Attributes:
        accelerator: the kind of device they train on.
        resources_per_worker: Ray resources each of them reserves.
        threads: torch threads of each worker; where ``by_node``, the fewest that any gets.
        by_node: whether a worker takes its share of the machine that it finds itself on.
        strategy: of Ray's placement group.
        accelerator_type: that a node must have; None for any.
        labels: that a node must have.
    """

    accelerator: Accelerator
    resources_per_worker: dict[str, float]
    threads: int | None
    by_node: bool = False
    strategy: str = "PACK"
    accelerator_type: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def takes(self, node: Node) -> bool:
        """Whether a worker may be put on a node, room or not."""
        kind = self.accelerator_type
        return (kind is None or ACCELERATOR_TYPE + kind in node.resources) and all(
            node.labels.get(key) == value for key, value in self.labels.items()
        )

    @property
    def busy_cpus(self) -> float:
        """Cores that a worker keeps busy: its threads on a CPU, or what it reserves."""
        on_cpu = self.accelerator.kind == "cpu"
        return max(self.resources_per_worker["CPU"], (self.threads or 1) if on_cpu else 1)


def place(
    config: ClusterConfig, *, one_thread: bool = False, threads_before: int | None = None
) -> Placement:
    """Decide on devices and threads, and refuse what can never be scheduled.

    Args:
        config: the ``cluster`` section.
        one_thread: give CPU workers one thread where the file does not say, because the number of
            threads is part of the bits and must not follow from the number of workers.
        threads_before: that CPU workers had when the run began, if they are to have as many again;
            they have where the file does not say and the machine has as many cores.

    Raises:
        ConfigError: with the arithmetic, when no node, or too few, can hold the workers.
    """
    nodes = alive_nodes()
    accelerator = from_resources(config.accelerator, _total(nodes))
    each = {"CPU": config.cpus_per_worker}
    if accelerator.kind != "cpu":
        each[accelerator.ray_resource] = 1.0
    placement = Placement(
        accelerator,
        each,
        config.threads_per_worker,
        strategy=config.placement.upper(),
        accelerator_type=config.accelerator_type,
        labels=config.labels,
    )
    _require_nodes(placement, nodes)
    missing = shortage(config.least_workers, placement, nodes)
    if missing is not None:
        raise ConfigError(
            f"cluster.workers: {missing}. Next: lower cluster.workers or "
            "cluster.cpus_per_worker, or add nodes"
        )
    if config.threads_per_worker is not None or accelerator.kind != "cpu":
        return placement
    if one_thread:
        return replace(placement, threads=1)
    possible = [n for n in nodes if placement.takes(n) and _room(placement, n.resources)]
    # A Ray of the run's own may be told of fewer cores than one was when the run began.
    machine = (os.cpu_count() or 1) - 1 if any(OWN in n.labels for n in possible) else 0
    if threads_before is not None and all(
        threads_before <= max(machine, share_of_node(node.cpus, 1)) for node in possible
    ):
        return replace(placement, threads=threads_before)
    least = min(
        share_of_node(node.cpus, max(1, min(config.workers, _room(placement, node.resources))))
        for node in possible
    )
    return replace(placement, threads=least, by_node=True)


def share_of_node(cpus: float, workers: int) -> int:
    """Torch threads of each worker on a machine.

    One core stays free for reading data: torch's threads wait for each other by spinning, so a
    thread too many costs far more than a thread too few.

    Args:
        cpus: logical CPUs that Ray counts on the machine; those that there are may be fewer.
        workers: of the run on it.
    """
    cores = min(os.cpu_count() or 1, max(1, int(cpus)))
    return max(1, (cores - 1) // workers)


class NoRoomError(PreemptedError):
    """The cluster was large enough, but others have not left room on it, or nodes are gone."""


def wait_for_room(
    workers: int,
    placement: Placement,
    say: Callable[[str], None],
    *,
    beside_others: bool = True,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Wait until workers and data tasks fit on the cluster.

    Args:
        workers: that train.
        placement: what each of them takes.
        say: told what is waited for, when it takes longer than a moment.
        beside_others: wait for what else runs there to leave room as well, not only for nodes.
        check: called while it waits; raises where nobody wants to wait any more.

    Raises:
        NoRoomError: in vain.
    """
    began, said = time.monotonic(), False
    free = " free" if beside_others else ""
    while True:
        check()
        nodes = free_nodes() if beside_others else alive_nodes()
        missing = shortage(workers, placement, nodes)
        if missing is None:
            return
        waited = time.monotonic() - began
        if waited > ROOM_SECONDS:
            raise NoRoomError(
                f"cluster.workers: {missing}{free}, and had no more in {ROOM_SECONDS / 60:g} "
                "minutes. Next: end what else runs on the cluster, add nodes, lower "
                "cluster.workers, or run the same command again later"
            )
        if waited > _MOMENT_SECONDS and not said:
            said = True
            say(
                f"waiting for room on the cluster, up to {ROOM_SECONDS / 60:g} min: {missing}{free}"
            )
        time.sleep(_POLL_SECONDS)


def free_nodes() -> list[Node]:
    """The nodes with what is not reserved in place of what they have."""
    free = free_resources()
    return [replace(node, resources=free.get(node.id, {})) for node in alive_nodes()]


def _total(nodes: Sequence[Node]) -> dict[str, float]:
    names = {name for node in nodes for name in node.resources}
    return {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in names}


def _room(placement: Placement, have: Mapping[str, float]) -> int:
    """Workers that fit on a node."""
    return min(
        math.floor(have.get(name, 0.0) / amount + _TINY)
        for name, amount in placement.resources_per_worker.items()
    )


def _require_nodes(placement: Placement, nodes: Sequence[Node]) -> None:
    """Refuse a type of accelerator, or labels, that no node has."""
    if any(placement.takes(node) for node in nodes):
        return
    kind, wanted = placement.accelerator_type, placement.labels
    types = sorted(
        name.removeprefix(ACCELERATOR_TYPE)
        for name in _total(nodes)
        if name.startswith(ACCELERATOR_TYPE)
    )
    if kind is not None and kind not in types:
        raise ConfigError(
            f"cluster.accelerator_type: no node has a {kind}; there are: "
            f"{', '.join(types) or 'none'}. Next: name one of them, or none"
        )
    there = sorted({f"{k}: {v}" for node in nodes for k, v in node.labels.items() if k in wanted})
    raise ConfigError(
        f"cluster.labels: no node has {', '.join(f'{k}: {v}' for k, v in wanted.items())}"
        f"{f' and a {kind}' if kind else ''}; for these keys there are: "
        f"{', '.join(there) or 'none'}. Next: start nodes with `ray start --labels`, or leave "
        "cluster.labels out"
    )


def shortage(
    workers: int,
    placement: Placement,
    nodes: Sequence[Node],
    *,
    beside: bool = False,
    data_cpus: float = DATA_CPUS,
) -> str | None:
    """The arithmetic of what is missing for so many workers; None when nothing is.

    Args:
        workers: that train.
        placement: what one of them takes, and where it may be.
        nodes: with what there is.
        beside: whether one more evaluates.
        data_cpus: that reading takes beside them.
    """
    each = placement.resources_per_worker
    total = _total(nodes)
    crowd = f"({workers} + 1)" if beside else f"{workers}"
    for name, amount in each.items():
        spare = data_cpus if name == "CPU" else 0.0
        wanted = (workers + beside) * amount + spare
        found = total.get(name, 0.0)
        if wanted > found + _TINY:
            return (
                f"{crowd} workers x {amount:g} {name}"
                + (f" + {spare:g} {name} for reading data" if spare else "")
                + f" = {wanted:g} {name}, but the cluster has {found:g}"
            )
    rooms = {node: _room(placement, node.resources) for node in nodes if placement.takes(node)}
    fitting = {
        "STRICT_PACK": max(rooms.values(), default=0),
        "STRICT_SPREAD": sum(room > 0 for room in rooms.values()),
    }.get(placement.strategy, sum(rooms.values()))
    # The one that evaluates is no part of their placement group.
    if fitting >= workers and sum(rooms.values()) >= workers + beside:
        return None
    what = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    how = {
        "STRICT_PACK": " on one node, as cluster.placement says,",
        "STRICT_SPREAD": " each on a node of its own, as cluster.placement says,",
    }.get(placement.strategy, "")
    listed = "; ".join(
        f"{node}: {' and '.join(f'{node.resources.get(name, 0.0):g} {name}' for name in each)} "
        f"for {room}"
        for node, room in list(rooms.items())[:_LISTED]
    )
    more = f"; and {len(rooms) - _LISTED} more nodes" if len(rooms) > _LISTED else ""
    return (
        f"{crowd} workers x {what}{how} do not fit: a worker has to be on one node. By node: "
        f"{listed}{more}; so the cluster has room for {fitting}"
    )


def place_evaluation(
    experiment: Experiment, placement: Placement, *, epochs: float, in_sweep: bool
) -> str | None:
    """Decide where a run evaluates; see ``train.evaluation``.

    Args:
        experiment: the run.
        placement: of its workers.
        epochs: that it trains.
        in_sweep: whether it shares the cluster with other trials.

    Returns:
        Why it does so in the loop; None where one more worker does it beside training.

    Raises:
        ConfigError: with the arithmetic, when it is to be beside and the cluster is too small.
    """
    train, cluster = experiment.train, experiment.cluster
    if train.evaluation == "in_loop":
        return "as train.evaluation says"
    if in_sweep:
        return "since other trials share the cluster"
    if train.early_stopping is not None:
        return "since train.early_stopping waits for the scores"
    if not train.evaluates_commits:
        return "since not every evaluation falls on a checkpoint"
    if epochs <= train.evaluate_every_epochs:
        return "since all of it comes after the last step"
    if cluster.min_workers is not None:
        return "since the number of workers follows the cluster"
    if train.evaluation == "beside":
        missing = shortage(cluster.workers, placement, alive_nodes(), beside=True)
        if missing is not None:
            raise ConfigError(
                f"train.evaluation: beside takes one worker more: {missing}. Next: write auto or "
                "in_loop, lower cluster.workers or cluster.cpus_per_worker, or add nodes"
            )
        return None
    # A thread too many costs more than the loop does, whatever has been reserved.
    each = dict(placement.resources_per_worker)
    each["CPU"] = max(each["CPU"], placement.threads or 0)
    with_threads = replace(placement, resources_per_worker=each)
    missing = shortage(cluster.workers, with_threads, free_nodes(), beside=True)
    return (
        None
        if missing is None
        else f"since one worker more, to evaluate beside it, would make {missing} free"
    )
