"""Ranks of a test as processes, each of which is over when its function is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], folder: Path, *more: Any, count: int) -> None:
    """Call ``function(rank, folder, *more)`` in a gloo group of processes with one thread each.

    Args:
        function: of a module, so that it can be pickled.
        folder: where the processes meet.
        more: picklable.
        count: of ranks.

    Raises:
        Exception: what one of them raises.
    """
    mp.spawn(_call, args=(count, function, folder, *more), nprocs=count)


def _call(rank: int, world: int, function: Callable[..., None], folder: Path, *more: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    function(rank, folder, *more)
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo that are still there when the interpreter is taken down abort the process.
    os._exit(0)
