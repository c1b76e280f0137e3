"""Torch's process group of a group of workers, joined and left as Ray Train has it.

Ray's own configuration of it makes every process that is given it import torch, the controller
too, which has no use for it and for which each start of workers waits.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

from orchestrator.cluster.network import await_reach, bind_collectives
from orchestrator.training.interrupt import stop_on_sigterm

log = logging.getLogger(__name__)

#: That workers get to leave their group, as in Ray.
_LEAVE_SECONDS = 30.0


@dataclasses.dataclass
class ProcessGroupConfig(BackendConfig):  # type: ignore[misc]  # Ray is not typed
    """Of a group of workers.

    Attributes:
        backend: of the collectives, ``gloo``, ``nccl`` or ``hccl``.
        reach_s: seconds that the workers' nodes get to reach each other.
        timeout_s: of a collective; torch's own is 1,800.
    """

    backend: str
    reach_s: float
    timeout_s: int = 1800

    @property
    def backend_cls(self) -> type[ProcessGroup]:
        """Who joins workers to it."""
        return ProcessGroup

    @property
    def train_func_context(self) -> Any:
        """What surrounds the function that trains; asked for by the driver alone."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager


class ProcessGroup(Backend):  # type: ignore[misc]
    """Joined on the address by which Ray knows each node; its workers stop politely on SIGTERM.

    Ray's own handler would end the process in the middle of a step. Handlers can be set in a
    process's main thread only; Ray runs there what a backend executes, and training in another one.
    """

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Have all workers join, once their nodes reach each other."""
        worker_group.execute(bind_collectives)
        await_reach(worker_group, backend_config.reach_s)
        address, port = worker_group.execute_single(0, get_address_and_port)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank, _join, (address, port), rank, size, backend_config
            )
            for rank in range(size)
        ]
        ray.get(joining)

    def on_training_start(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Set the handler, which Ray has set before."""
        worker_group.execute(stop_on_sigterm)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroupConfig) -> None:
        """Have all workers leave."""
        leaving = worker_group.execute_async(_leave, len(worker_group) > 1)
        try:
            ray.get(leaving, timeout=_LEAVE_SECONDS)
        except GetTimeoutError:
            log.warning("the process group was not left within %g s", _LEAVE_SECONDS)


def _join(head: tuple[str, int], rank: int, size: int, config: ProcessGroupConfig) -> None:
    """What each worker does.

    Args:
        head: address and port of rank 0.
        rank, size: of this worker, and how many there are.
        config: of the group.
    """
    from ray.train.torch import config as of_ray

    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = head[0], str(head[1])
    of_ray._set_torch_distributed_env_vars()
    of_ray._setup_torch_process_group(
        backend=config.backend,
        world_rank=rank,
        world_size=size,
        init_method="env://",
        timeout_s=config.timeout_s,
    )


def _leave(destroy: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=destroy)
