"""Ranks of a test as processes, each of which is over when its function is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_ranks(function: Callable[..., None], *arguments: Any, count: int) -> None:
    """Call ``function(rank, *arguments)`` in ``count`` processes; raises what one of them raises.

    Args:
        function: of a module, so that it can be pickled.
        arguments: picklable.
        count: of ranks.
    """
    mp.spawn(_call, args=(function, *arguments), nprocs=count)


def _call(rank: int, function: Callable[..., None], *arguments: Any) -> None:
    function(rank, *arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of gloo that are still there when the interpreter is taken down abort the process.
    os._exit(0)
