"""Processes that are started before an attempt asks for them.

Most of the time from a lost worker to the next step, and from the command to the first one, goes
into starting Python and importing torch: first in Ray Train's controller and then, when that asks
for them, in the workers, and in the data tasks when those ask. Ray gives an actor or task a process
that has never worked and was started for the same environment, if it has one idle. So those of an
attempt are started together where it is known on which node they will run; and while an attempt
trains, copies of its controller and workers, for the next one.
:mod:`~orchestrator.cluster.preload` has them import what will be needed.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import (
    common_pb2,
    gcs_pb2,
    node_manager_pb2,
    node_manager_pb2_grpc,
    runtime_environment_pb2,
)
from typing_extensions import Self

from orchestrator.cluster.controller import variables_of_controller
from orchestrator.cluster.cores import usable_cores
from orchestrator.cluster.heartbeat import Beat
from orchestrator.cluster.nodes import this_node
from orchestrator.cluster.own_ray import count_idle, is_own_ray
from orchestrator.cluster.preload import WORKER, environment
from orchestrator.config.schema import ClusterConfig
from orchestrator.data.stream.ray_streams import MIN_TASKS
from orchestrator.data.stream.slots import DATA_TASK, ROLE
from orchestrator.storage.run_files import HEARTBEATS
from orchestrator.training.job import TrainingJob

log = logging.getLogger(__name__)

#: Ray's names of what an attempt consists of.
_CONTROLLER, _WORKER = "TrainController", "RayTrainWorker"
#: Seconds after the first step at which copies are started: before, they would only take what that
#: needs, and a short run needs none.
AFTER_SECONDS = 2.0
_LOOK_SECONDS = 2.0
#: Ray ends idle processes after a second unless told for how long to keep them; all end with the
#: driver.
_KEEP_SECONDS, _SOON_SECONDS = 30 * 24 * 3600, 120
_ANSWER_SECONDS = 10.0
#: A node starts no more processes at a time than it has cores, and forgets what else was asked.
_BETWEEN_SECONDS = 3.0


class Spares:
    """Of the attempts of one run.

    They are a convenience: whatever goes wrong is logged and nothing else.

    Attributes:
        variables: of the environment of an attempt's controller, which its workers inherit.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        *,
        ahead: bool = True,
        kept: bool,
        beats: Path | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            variables: see above.
            ahead: whether anything is started before an attempt asks for it.
            kept: whether copies wait for the next attempt.
            beats: where workers say how many steps they have done; None where they do not.
        """
        self.variables = dict(variables)
        self._ahead = ahead
        self._kept = kept
        self._beats = beats
        #: Idle, by node and environment.
        self._idle: Counter[tuple[str, str]] = Counter()

    @classmethod
    def of(cls, job: TrainingJob) -> Self:
        """Those of a run. Trials are short, and have the machine to share: they have none."""
        preloaded = environment()
        return cls(
            variables_of_controller() | preloaded,
            ahead=bool(preloaded) and not job.sampled,
            kept=keeps_copies(job.experiment.cluster),
            beats=None if job.experiment.cluster.hang_timeout is None else job.path / HEARTBEATS,
        )

    @contextmanager
    def beside(self, workers: int) -> Iterator[None]:
        """Start what an attempt of so many workers needs; while it trains, what the next one will.

        The attempt is the block.
        """
        if not self._ahead:
            yield
            return
        over = threading.Event()
        threading.Thread(
            target=self._watch, args=(workers, over), name="spares", daemon=True
        ).start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, workers: int, over: threading.Event) -> None:
        try:
            # Elsewhere Ray chooses the nodes.
            if is_own_ray():
                self._start_now(workers, over)
            since: float | None = None
            while self._kept and not over.wait(_LOOK_SECONDS):
                there = _processes()
                if sum(there[_WORKER].values()) < workers or not self._has_stepped():
                    since = None
                    continue
                since = since or time.monotonic()
                if time.monotonic() - since >= AFTER_SECONDS:
                    self._start_copies(there[_CONTROLLER] + there[_WORKER], over)
                    return
        # Of a Ray that is gone, or of another release.
        except Exception as error:
            log.debug("no spare processes: %s", error)

    def _has_stepped(self) -> bool:
        if self._beats is None:
            return True
        beats = (Beat.read(path) for path in self._beats.glob("*/rank*.json"))
        return any(beat.taken for beat in beats if beat is not None)

    def _start_now(self, workers: int, over: threading.Event) -> None:
        """Workers, where no copies wait, and then data tasks: as many as there are at least."""
        here = this_node()
        of_workers, of_tasks = (
            inherited({**self.variables, ROLE: role}) for role in (WORKER, DATA_TASK)
        )
        missing = workers - self._idle[here, of_workers]
        if missing <= 0:
            return
        _prestart(here, of_workers, missing, _SOON_SECONDS)
        if over.wait(_BETWEEN_SECONDS):
            return
        # Some outlive the attempt that they were started for.
        missing = min(MIN_TASKS * workers, usable_cores()) - count_idle({ROLE: DATA_TASK})
        if missing > 0:
            _prestart(here, of_tasks, missing, _SOON_SECONDS)

    def _start_copies(self, wanted: Counter[tuple[str, str]], over: threading.Event) -> None:
        """As many as there are processes now, which took those that were idle before."""
        self._idle -= wanted
        for one in (wanted - self._idle).elements():
            _prestart(*one, 1, _KEEP_SECONDS)
            self._idle[one] += 1
            if over.wait(_BETWEEN_SECONDS):
                return


def keeps_copies(cluster: ClusterConfig) -> bool:
    """Whether copies of a run's processes wait for its next attempt."""
    return cluster.workers > 1 if cluster.spare_processes is None else cluster.spare_processes


def inherited(variables: Mapping[str, str]) -> str:
    """How Ray writes down the environment of an actor or task that another one starts.

    It puts together what the job, who starts it, and it itself ask for.

    Args:
        variables: all but those of the job.
    """
    whole: dict[str, Any] = dict(ray.get_runtime_context().runtime_env or {})
    whole["env_vars"] = {**whole.get("env_vars", {}), **variables}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _prestart(node: str, environment: str, count: int, seconds: int) -> None:
    """Have a node start processes.

    Args:
        node: its id.
        environment: as Ray writes it.
        count: of processes.
        seconds: for which they are kept while nobody needs them.
    """
    (found,) = [one for one in ray.nodes() if one["NodeID"] == node]
    request = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.PYTHON,
        job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
        runtime_env_info=runtime_environment_pb2.RuntimeEnvInfo(serialized_runtime_env=environment),
        keep_alive_duration_secs=seconds,
        num_workers=count,
    )
    address = f"{found['NodeManagerAddress']}:{found['NodeManagerPort']}"
    with init_grpc_channel(address) as channel:
        stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
        stub.PrestartWorkers(request, timeout=_ANSWER_SECONDS)


def _processes() -> dict[str, Counter[tuple[str, str]]]:
    """How many controllers and workers of this job there are, by node and environment."""
    found: dict[str, Counter[tuple[str, str]]] = {_CONTROLLER: Counter(), _WORKER: Counter()}
    accessor = state.state._connect_and_get_accessor()
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    for raw in accessor.get_actor_table(job, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(raw)
        if actor.class_name in found:
            where = (actor.address.node_id.hex(), actor.serialized_runtime_env)
            found[actor.class_name][where] += 1
    return found
