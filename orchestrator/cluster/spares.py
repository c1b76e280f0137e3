"""Processes that wait, with everything imported, for the next attempt.

Most of the time from a lost worker to the next step goes into starting Python and importing torch:
first in Ray Train's controller and then, once that asks for them, in the workers. Ray gives an
actor a process that has never worked and was started for the same environment, if it has one idle.
So while an attempt trains, copies of its processes are started. Ray calls a function in each, and
in those that nobody needs it imports what an actor will.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

import ray
from ray._private import state, worker
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.core.generated import (
    common_pb2,
    gcs_pb2,
    node_manager_pb2,
    node_manager_pb2_grpc,
    runtime_environment_pb2,
)

from orchestrator.data.stream.slots import DATA_TASK

log = logging.getLogger(__name__)

#: Ray's names of what an attempt consists of.
CONTROLLER, WORKER = "TrainController", "RayTrainWorker"
#: What they import when they begin; the last one, by the way, whoever makes an optimizer.
_MODULES = ("orchestrator.cluster.trainer", "ray.data", "torch._dynamo")
#: Seconds after which a process that has not been needed is a spare. Ray starts one for somebody
#: who waits for it, and is about to use it.
_UNUSED_SECONDS = 3.0
#: Seconds of training after which spares are started: those of an attempt that fails at once would
#: only take what the next one needs, and a short run needs none.
AFTER_SECONDS = 20.0
_LOOK_SECONDS = 2.0
#: Ray ends idle processes after a second unless told for how long to keep them; all end with the
#: driver.
_KEEP_SECONDS = 30 * 24 * 3600
_ANSWER_SECONDS = 10.0
#: Importing must not slow down training.
_NICE = 10


def environment() -> dict[str, str]:
    """Variables of a process of which spares can be kept; none where the job has its own such."""
    of_job = ray.get_runtime_context().runtime_env or {}
    if WORKER_PROCESS_SETUP_HOOK_ENV_VAR in of_job.get("env_vars", {}):
        return {}
    return {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{__name__}.{begin.__name__}"}


def begin() -> None:
    """What Ray calls in each process that it starts in such an environment."""
    if DATA_TASK in os.environ:
        return
    threading.Thread(target=_import_if_unused, name="spare", daemon=True).start()


def _import_if_unused() -> None:
    time.sleep(_UNUSED_SECONDS)
    if not worker.global_worker.actor_id.is_nil():
        return
    with suppress(OSError, AttributeError):  # Of this thread alone, on Linux.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    # Whatever is wrong is for the actor to find that needs it.
    with suppress(Exception):
        for name in _MODULES:
            import_module(name)


class Spares:
    """Keeps a spare of each process of an attempt, on the node where it runs.

    They are a convenience: whatever goes wrong is logged and nothing else.

    Args:
        workers: of an attempt.
    """

    def __init__(self) -> None:
        #: Idle, by node and environment.
        self._idle: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def kept(self, workers: int) -> Iterator[None]:
        """Start them while the block runs, once ``workers`` workers train."""
        over = threading.Event()
        thread = threading.Thread(
            target=self._keep, args=(workers, over), name="spares", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _keep(self, workers: int, over: threading.Event) -> None:
        since: float | None = None
        try:
            while not over.wait(_LOOK_SECONDS):
                there = _processes()
                if sum(there[WORKER].values()) < workers:
                    since = None
                    continue
                since = since or time.monotonic()
                if time.monotonic() - since >= AFTER_SECONDS:
                    self._start(there[WORKER] + there[CONTROLLER])
                    return
        # Of a Ray that is gone, or of another release.
        except Exception as error:
            log.debug("no spare processes: %s", error)

    def _start(self, wanted: Counter[tuple[str, str]]) -> None:
        """As many as there are processes now, which took those that were idle before."""
        self._idle -= wanted
        job = bytes.fromhex(ray.get_runtime_context().get_job_id())
        nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for (node, serialized), count in (wanted - self._idle).items():
            address = f"{nodes[node]['NodeManagerAddress']}:{nodes[node]['NodeManagerPort']}"
            request = node_manager_pb2.PrestartWorkersRequest(
                language=common_pb2.PYTHON,
                job_id=job,
                runtime_env_info=runtime_environment_pb2.RuntimeEnvInfo(
                    serialized_runtime_env=serialized
                ),
                keep_alive_duration_secs=_KEEP_SECONDS,
                num_workers=count,
            )
            with init_grpc_channel(address) as channel:
                stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
                stub.PrestartWorkers(request, timeout=_ANSWER_SECONDS)
            self._idle[node, serialized] += count


def _processes() -> dict[str, Counter[tuple[str, str]]]:
    """How many controllers and workers of this job there are, by node and environment."""
    found: dict[str, Counter[tuple[str, str]]] = {CONTROLLER: Counter(), WORKER: Counter()}
    accessor = state.state._connect_and_get_accessor()
    job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    for raw in accessor.get_actor_table(job, "ALIVE"):
        actor = gcs_pb2.ActorTableData.FromString(raw)
        if actor.class_name in found:
            where = (actor.address.node_id.hex(), actor.serialized_runtime_env)
            found[actor.class_name][where] += 1
    return found
