"""Ray Data without the actors that it starts beside its tasks."""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import Any
from uuid import uuid4

import ray
from ray.data._internal import stats

#: What Ray Data tells the actor that keeps numbers for its dashboard, and asks it.
_TOLD = (
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)
_NAMED = "gen_dataset_id_from_stats_actor"
#: Who asks the actor that tells Ray's autoscaler what is wanted, and through which class.
_AUTOSCALERS = ("rate_based_cluster_autoscaler", "default_cluster_autoscaler_v2")
_COORDINATOR = "DefaultAutoscalingCoordinator"


class _WholeCluster:
    """Stands for an autoscaler of which nobody else asks anything."""

    def __init__(self, *_: Any, **__: Any) -> None:
        nodes = {one["NodeID"]: one["Resources"] for one in ray.nodes() if one["Alive"]}
        kinds = ("CPU", "GPU", "memory", "object_store_memory")
        self._nodes = {
            node: {kind: amount for kind, amount in of_node.items() if kind in kinds}
            for node, of_node in nodes.items()
        }

    def request_resources(self, *_: Any, **__: Any) -> None:
        """Nothing can be added."""

    def cancel_request(self, *_: Any, **__: Any) -> None:
        """Nothing was asked for."""

    def get_reserved_resources(self) -> dict[str, dict[str, float]]:
        """What each node has."""
        return self._nodes


def start_no_actors() -> None:
    """Have executions of this process keep their numbers to themselves, and ask for no nodes.

    For a Ray that has neither dashboard nor autoscaler. Two actors and a second or more before the
    first batch are saved; and an execution knows from its beginning what it may use, which it would
    otherwise learn within its first second. What a release of Ray has not is left as it is there.
    """
    manager = stats._StatsManager
    for name in _TOLD:
        if hasattr(manager, name):
            setattr(manager, name, staticmethod(lambda *_, **__: None))
    if hasattr(manager, _NAMED):
        setattr(manager, _NAMED, staticmethod(lambda: uuid4().hex))
    for name in _AUTOSCALERS:
        with suppress(ImportError):
            autoscaler = import_module(f"ray.data._internal.cluster_autoscaler.{name}")
            if hasattr(getattr(autoscaler, _COORDINATOR, None), "get_reserved_resources"):
                setattr(autoscaler, _COORDINATOR, _WholeCluster)
