"""What Ray calls in each process that it starts for a run: import, while nobody needs it."""

from __future__ import annotations

import gc
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module

import ray
from ray import cloudpickle
from ray._private import worker
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.runtime_env.setup_hook import export_setup_func_callable

from orchestrator.data.stream.slots import DATA_TASK, ROLE

#: Value of the variable in the processes of workers; controllers have none.
WORKER = "worker"
#: What each role imports when it begins. A controller needs no torch.
_MODULES = {
    None: ("orchestrator.cluster.controller",),
    WORKER: ("orchestrator.cluster.trainer", "ray.data"),
    DATA_TASK: ("orchestrator.data.stream.ray_stream",),
}
#: The lowest priority: importing must not slow down training, whose processes Ray starts with 15.
_NICE = 19


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
    # As orchestrator.memory.importing does, which may not be found yet: what is imported stays, and
    # looking through it takes a fifth of the whole.
    gc.disable()
    # Of two threads that import modules which import each other, one sees half of a module.
    imports = threading.Thread(target=_import, name="preload", daemon=True)
    imports.start()
    imports.join()
    gc.freeze()
    gc.enable()


def _import() -> None:
    role = os.environ.get(ROLE)
    # For a controller others wait.
    if role is not None:
        with suppress(OSError, AttributeError):  # Of this thread alone, on Linux.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
    # Whatever is wrong is for those to find that need it.
    with suppress(Exception):
        for name in _MODULES[role]:
            import_module(name)
