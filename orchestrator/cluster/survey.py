"""What every node of a cluster sees, and whom it reaches: found out before the first step.

A process is started on each node that may train or read. It looks for a file that the driver has
just made in the run folder, for the images and for the initial weights, and it connects to the
processes on the other nodes. All of it takes about as long as starting a process does.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import native
from orchestrator.cluster.network import Door, knock
from orchestrator.cluster.nodes import Node, alive_nodes, names_of
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.errors import ConfigError

log = logging.getLogger(__name__)

#: A process on a node has to start within this; loading the program from a slow disk takes long.
_START_SECONDS = 60.0
_ANSWER_SECONDS = 30.0
_NAMED = 4


@dataclass(frozen=True)
class Needed:
    """A path that has to be there on nodes.

    Attributes:
        key: of the experiment that names it.
        path: absolute.
    """

    key: str
    path: str


class _Scout:
    """The process on one node."""

    def __init__(self) -> None:
        self._door = Door()

    def look(self, paths: Sequence[str]) -> list[bool]:
        """Which paths are there, and may be read."""
        return [os.access(path, os.R_OK) for path in paths]

    def kernels(self) -> str:
        """Which implementation of the kernels serves there."""
        return native.backend()

    def door(self) -> tuple[str, int]:
        """Where it accepts connections."""
        return self._door.address, self._door.port

    def knock(self, doors: Sequence[tuple[str, int]]) -> list[str | None]:
        """See :func:`~orchestrator.cluster.network.knock`."""
        return knock(doors)


def survey(
    nodes: Sequence[Node], needed: Sequence[Needed], marker: Path | None = None
) -> list[Node]:
    """Look at a cluster from each of its nodes.

    Args:
        nodes: that may train or read.
        needed: what each of them has to see.
        marker: a file that only the driver's own disk, and what is mounted from it, has; None
            where no folder is looked for.

    Returns:
        The nodes that do not see ``marker``: their disks are their own.

    Raises:
        ConfigError: a node does not see what it needs, or two nodes do not reach each other; with
            key, path, nodes and ports.
    """
    scouts = _scouts(nodes)
    try:
        paths = [need.path for need in needed]
        if marker is not None:
            paths.append(str(marker))
        seen = _ask(scouts, "look", dict.fromkeys(scouts, (paths,)))
        _require_seen(needed, seen)
        # Whoever still looks answers nothing else.
        heard = {node: scouts[node] for node in seen}
        _tell_of_kernels(_ask(heard, "kernels", dict.fromkeys(heard, ())))
        unreached = _unreached(heard)
        if unreached:
            more = f"; and {len(unreached) - _NAMED} more" if len(unreached) > _NAMED else ""
            raise ConfigError(
                f"cluster: nodes cannot talk to each other: {'; '.join(unreached[:_NAMED])}{more}. "
                "Workers on them would wait for each other in vain. Next: let the nodes reach each "
                "other on all ports (firewall, security group, network policy), or take one of "
                "them out of the cluster"
            )
        return [] if marker is None else [node for node, found in seen.items() if not found[-1]]
    finally:
        for actor in scouts.values():
            ray.kill(actor)


def look_around(needed: Sequence[Needed], shared: Path | None = None) -> None:
    """Refuse a cluster with nodes that do not see what is read, or where results are written.

    Args:
        needed: what each node that may get work has to see.
        shared: folder that nodes write to and this process reads from; made if need be.

    Raises:
        ConfigError: with the nodes.
    """
    if is_own_ray():
        return
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


def _scouts(nodes: Sequence[Node]) -> dict[Node, Any]:
    """A process on each node; what does not start in time is said and left out."""
    actors = {
        node.id: ray.remote(
            num_cpus=0,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )(_Scout).remote()
        for node in nodes
    }
    started = {actor.__ray_ready__.remote(): node for node, actor in actors.items()}
    ready, late = ray.wait(list(started), num_returns=len(started), timeout=_START_SECONDS)
    up = {started[reference] for reference in ready if _is_well(reference)}
    lost = [node for node in nodes if node.id not in up]
    if lost:
        log.warning(
            "no process could be started within %g s on %s; nothing is known of them",
            _START_SECONDS,
            names_of(lost),
        )
    for reference in late:
        ray.kill(actors[started[reference]])
    return {node: actors[node.id] for node in nodes if node.id in up}


def _is_well(reference: Any) -> bool:
    try:
        ray.get(reference)
    except RayError as error:
        log.warning("a node could not be looked at: %s", str(error).splitlines()[0])
        return False
    return True


def _ask(
    scouts: Mapping[Node, Any], what: str, arguments: Mapping[Node, tuple[Any, ...]]
) -> dict[Node, Any]:
    """Answers of those who answer in time; the others are said and left out."""
    asked = {getattr(actor, what).remote(*arguments[node]): node for node, actor in scouts.items()}
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    if late:
        log.warning(
            "no answer within %g s from %s; a disk or mount that hangs there would hold up the run",
            _ANSWER_SECONDS,
            names_of(asked[reference] for reference in late),
        )
    return {asked[reference]: ray.get(reference) for reference in ready if _is_well(reference)}


def _require_seen(needed: Sequence[Needed], seen: Mapping[Node, Sequence[bool]]) -> None:
    for number, need in enumerate(needed):
        blind = [node for node, found in seen.items() if not found[number]]
        if not blind:
            continue
        raise ConfigError(
            f"{need.key}: {need.path} is there on the driver's node and cannot be read on "
            f"{names_of(blind)}, which may get work. Next: mount that folder at the same path "
            "on every node, put it there, or name a place in a bucket: shards as "
            "data.train.shards and data.val.shards"
        )


def _tell_of_kernels(serving: Mapping[Node, str]) -> None:
    """Say which nodes have no compiled kernels; a folder that is uploaded brings none."""
    without = [node for node, kernels in serving.items() if kernels == "reference"]
    if without:
        log.warning(
            "kernels: %s %s no compiled ones; the Python reference gives the same results there, "
            "slower. Next: install the same version there, with a C++17 compiler",
            names_of(without),
            "has" if len(without) == 1 else "have",
        )


def _unreached(scouts: Mapping[Node, Any]) -> list[str]:
    doors = _ask(scouts, "door", dict.fromkeys(scouts, ()))
    others = {node: [other for other in doors if other.address != node.address] for node in scouts}
    asked = {node: ([doors[other] for other in others[node]],) for node in scouts}
    lines = []
    for node, answers in _ask(scouts, "knock", asked).items():
        for other, trouble in zip(others[node], answers, strict=True):
            if trouble is not None:
                lines.append(f"{node} does not reach {other} on port {doors[other][1]} ({trouble})")
    return sorted(lines)
