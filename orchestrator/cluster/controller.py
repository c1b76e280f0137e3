"""Ray Train's controller: a sign of life of its own, and what is left of one that was killed.

The controller is an actor beside the workers, which starts them and waits for them. Ray has an
actor that frees what a killed controller had reserved, but it needs the dashboard, which a local
Ray is started without, and keeps a process for each attempt. The driver, which sees the attempt
fail, can do it as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from typing_extensions import Self

from orchestrator.cluster.heartbeat import CONTROLLER, Heartbeat
from orchestrator.cluster.nodes import this_node
from orchestrator.cluster.own_ray import is_own_ray
from orchestrator.cluster.relay import Way

log = logging.getLogger(__name__)

#: Callbacks of Ray's that would each start an actor: one that frees what a killed controller had
#: reserved, and one that hands out data sets, of which there are none here.
_LEFT_OUT = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})


class _SignOfLife(ControllerCallback):  # type: ignore[misc]  # Ray is not typed
    """Gives signs of life of the process that it is started in."""

    def __init__(self, beats: Path, timeout: float, way: Way) -> None:
        self._arguments = (beats, timeout, way)
        self._alive: Heartbeat | None = None

    def after_controller_start(self, train_run_context: Any) -> None:
        beats, timeout, way = self._arguments
        node = ray.get_runtime_context().get_node_id()
        send = way.signs(str(beats))
        self._alive = Heartbeat(beats, CONTROLLER, timeout, node=node, send=send)
        self._alive.__enter__()

    async def before_controller_shutdown(self) -> None:
        if self._alive is not None:
            self._alive.__exit__()


class _NobodyMeets(ControllerCallback):  # type: ignore[misc]
    """Has workers start without the actor at which those meet that call ``ray.train.report``.

    None of this program's does, and the process would take the place of one that is waited for.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        # Wherever Ray keeps these, it is right that the actor is there.
        if hasattr(worker_group, "SynchronizationActor") and hasattr(state, "_shutdown_sync_actor"):
            worker_group.SynchronizationActor = _Nobody
            state._shutdown_sync_actor = lambda _: None


class _Nobody:
    """In place of that actor."""

    @classmethod
    def options(cls, **_: Any) -> type[Self]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> Self:
        return cls()


class _AsManyAsThereAre(FixedScalingPolicy):  # type: ignore[misc]
    """Tells no autoscaler how many workers are wanted.

    Ray does so through an actor, for whose process the first start of workers would wait.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


def variables_of_controller() -> dict[str, str]:
    """Variables of the environment of a controller: those that Ray gives it, and one more."""
    found: dict[str, str] = get_env_vars_to_propagate()
    chosen = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}
    if is_own_ray():
        # No cloud takes that node back, and a process that watches for it takes seconds to start.
        chosen["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return chosen | found


class WatchedTrainer(DataParallelTrainer):  # type: ignore[misc]
    """A trainer whose controller gives signs of life, with as few processes as can be beside it."""

    def __init__(
        self,
        *arguments: Any,
        beats: Path,
        timeout: float | None,
        way: Way,
        variables: Mapping[str, str],
        **more: Any,
    ) -> None:
        """Have the controller watched.

        Args:
            arguments, more: of Ray's trainer.
            beats: folder of the signs of life.
            timeout: of the ranks' heartbeats; None for none.
            way: of the controller to the driver.
            variables: of the environment of the controller, and of all that it starts.
        """
        super().__init__(*arguments, **more)
        self._variables = dict(variables)
        self._watched = None if timeout is None else _SignOfLife(beats, timeout, way)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [
            callback
            for callback in super()._create_default_callbacks()
            if type(callback).__name__ not in _LEFT_OUT
        ]
        callbacks.append(_NobodyMeets())
        return callbacks if self._watched is None else [*callbacks, self._watched]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        """As Ray does it, which takes no variables."""
        if is_own_ray():
            arguments["scaling_policy"] = _AsManyAsThereAre(
                arguments["scaling_policy"].scaling_config
            )
        controller = (
            ray.remote(TrainController)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(this_node(), soft=False),
                runtime_env={"env_vars": self._variables},
            )
            .remote(**arguments)
        )
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


def free_orphans() -> int:
    """Give back what dead actors of this job have reserved; how many places that were.

    Placement groups of an actor outlive it until its whole job ends, and a killed controller's
    would keep the CPUs that its successor's data tasks need.
    """
    freed = 0
    for group in _groups_of_actors():
        creator = group.creator_actor_id.hex()
        state = ray._private.state.state.actor_table(creator).get("State")
        if group.creator_actor_dead or state == "DEAD":
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
            freed += 1
    return freed


def reserved_by_workers() -> dict[str, dict[str, float]]:
    """What the workers of this job have reserved, by node id and resource."""
    found: dict[str, dict[str, float]] = {}
    for group in _groups_of_actors():
        for bundle in group.bundles:
            of_node = found.setdefault(bundle.node_id.hex(), {})
            for name, amount in bundle.unit_resources.items():
                of_node[name] = of_node.get(name, 0.0) + amount
    return found


def _groups_of_actors() -> Iterator[Any]:
    """Places that actors of this job have reserved, as Ray's head knows them."""
    job = ray.get_runtime_context().get_job_id()
    accessor = ray._private.state.state._connect_and_get_accessor()
    for raw in accessor.get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        if group.state == gcs_pb2.PlacementGroupTableData.REMOVED or group.is_detached:
            continue
        # That of a driver is all ones.
        if group.creator_job_id.hex() == job and group.creator_actor_id.hex().strip("f"):
            yield group
