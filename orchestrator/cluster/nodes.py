"""The nodes of a Ray cluster as a run sees them: names, addresses, resources, labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ray
from ray._private import state
from ray.experimental import internal_kv

#: What the head of a cluster is told of runs, as long as it lives.
_NOTES = b"orchestrator"
_HEAD = "node:__internal_head__"
#: Prefix of the resource by which Ray marks a node with a type of accelerator.
ACCELERATOR_TYPE = "accelerator_type:"


@dataclass(frozen=True)
class Node:
    """One node that lives.

    Attributes:
        id: Ray's, in hex.
        host: name of the machine, as it calls itself.
        address: by which Ray knows it.
        resources: all it has, by Ray's names; CPU, GPU, NPU and so on.
        labels: by key.
    """

    id: str
    host: str
    address: str
    resources: Mapping[str, float] = field(compare=False)
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return self.address if self.host == self.address else f"{self.host} ({self.address})"

    @property
    def cpus(self) -> float:
        """Logical CPUs."""
        return self.resources.get("CPU", 0.0)

    @property
    def is_head(self) -> bool:
        """Whether the cluster ends with it."""
        return _HEAD in self.resources

    @property
    def own_resource(self) -> str:
        """Name of a resource that it has a little of, and no other machine any."""
        return next(name for name in self.resources if name.startswith("node:") and name != _HEAD)


def alive_nodes() -> list[Node]:
    """The nodes of the cluster this process is connected to, in a fixed order."""
    nodes = [
        Node(
            id=found["NodeID"],
            host=found["NodeManagerHostname"],
            address=found["NodeManagerAddress"],
            resources=dict(found["Resources"]),
            labels=dict(found.get("Labels") or {}),
        )
        for found in ray.nodes()
        if found["Alive"]
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def free_resources() -> dict[str, dict[str, float]]:
    """What is not reserved, by node id; Ray learns of it a moment late."""
    found: dict[str, dict[str, float]] = state.available_resources_per_node()
    return found


def this_node() -> str:
    """Id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def leave_note(key: str, text: str) -> None:
    """Leave a text with the head of the cluster, in place of what was there."""
    internal_kv._internal_kv_put(key.encode(), text.encode(), namespace=_NOTES)


def read_note(key: str) -> str | None:
    """A text that was left there; None for none."""
    found = internal_kv._internal_kv_get(key.encode(), namespace=_NOTES)
    return None if found is None else str(found.decode())


def names_of(nodes: Iterable[Node], limit: int = 4) -> str:
    """Nodes for a message, a few of them."""
    names = [str(node) for node in nodes]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
