"""The processes of data tasks, and how many work at a time on a node, with no server to ask.

Ray starts what it is given as soon as there are logical CPUs for it. A task in reserve, there so
that no core is idle until the next one comes, would then share the cores with those it is to
follow: with three tasks on two cores each of them finds another's data in the cache every few
milliseconds, and all of them together are slower.
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Variable that tells the processes of a run apart: Ray must not give a task one of those that are
#: kept for workers.
ROLE = "ORCHESTRATOR_ROLE"
#: Its value in the processes of such tasks.
DATA_TASK = "data-task"
_POLL_SECONDS = 0.005


@contextmanager
def slot(stream: str, count: int) -> Iterator[None]:
    """Hold one of the ``count`` slots of ``stream`` on this node, waiting until one is free.

    A slot is a name in Linux's abstract socket namespace (unix(7)): one process can be bound to it,
    no file is left behind, and it is free again however that process ends. Where there is no such
    namespace nobody waits.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        while not any(_taken(holder, f"{stream}-{number}") for number in range(count)):
            time.sleep(_POLL_SECONDS)
        yield


def _taken(holder: socket.socket, name: str) -> bool:
    """Whether the slot is this process's now, or cannot be had by any."""
    try:
        holder.bind(f"\0orchestrator-{name}")
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True
