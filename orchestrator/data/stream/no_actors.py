"""Ray Data without the actors that it starts beside its tasks."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

import ray
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler as autoscaler

log = logging.getLogger(__name__)

#: What Ray Data tells the actor that keeps numbers for its dashboard.
_TOLD = (
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)


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
    otherwise learn within its first second. A release of Ray that does it otherwise is left alone.
    """
    manager, coordinator = stats._StatsManager, autoscaler.DefaultAutoscalingCoordinator
    told = [name for name in _TOLD if hasattr(manager, name)]
    if len(told) != len(_TOLD) or not hasattr(coordinator, "get_reserved_resources"):
        log.debug("actors of Ray Data are as in the release")
        return
    for name in told:
        setattr(manager, name, staticmethod(lambda *_, **__: None))
    manager.gen_dataset_id_from_stats_actor = staticmethod(lambda: uuid4().hex)
    autoscaler.DefaultAutoscalingCoordinator = _WholeCluster
