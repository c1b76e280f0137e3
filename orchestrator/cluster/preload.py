"""What Ray calls in each process that it starts for a run: import, while nobody needs it."""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from importlib import import_module

import ray
from ray import cloudpickle
from ray._private import worker
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.runtime_env.setup_hook import export_setup_func_callable

from orchestrator.data.stream.slots import DATA_TASK

#: What controllers and workers import when they begin; and what data tasks do.
_OF_ACTORS = ("orchestrator.cluster.trainer", "ray.data")
_OF_TASKS = ("orchestrator.data.stream.ray_stream",)
#: Ray starts a process for an actor that waits for it, and gives it to that at once. One that is
#: unused for so many seconds was started ahead.
_UNUSED_SECONDS = 1.0
#: Importing must not slow down training.
_NICE = 10


def environment() -> dict[str, str]:
    """Variables by which Ray calls :func:`begin`; none where it calls a function of the user's."""
    of_job = ray.get_runtime_context().runtime_env or {}
    if WORKER_PROCESS_SETUP_HOOK_ENV_VAR in of_job.get("env_vars", {}):
        return {}
    # By value, since Ray ends a process that cannot import what it is to call, and this package may
    # be found only by what the driver tells its workers later.
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)
    try:
        found: dict[str, str] = export_setup_func_callable({}, begin, worker.global_worker)[
            "env_vars"
        ]
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    return found


def begin() -> None:
    """What Ray calls, before it gives the process to anybody."""
    threading.Thread(target=_import_if_unused, name="preload", daemon=True).start()


def _import_if_unused() -> None:
    for_actors = DATA_TASK not in os.environ
    if for_actors:
        time.sleep(_UNUSED_SECONDS)
        if not worker.global_worker.actor_id.is_nil():
            return
    with suppress(OSError, AttributeError):  # Of this thread alone, on Linux.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    # Whatever is wrong is for those to find that need it.
    with suppress(Exception):
        for name in _OF_ACTORS if for_actors else _OF_TASKS:
            import_module(name)
