"""Child processes that start in milliseconds: forked from a server that has loaded torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from typing import Any
from unittest import mock

#: torch loads its compiler when the first optimizer is made, which takes seconds in each process.
_PRELOADED = [
    "tests.support.commit_scenario",
    "tests.support.lock_processes",
    "tests.support.chaos_run",
    "torch._dynamo",
]
CHILDREN = multiprocessing.get_context("forkserver")


def start_server() -> None:
    """Start the server, which loads what the children need; later calls do nothing."""
    CHILDREN.set_forkserver_preload(_PRELOADED)
    # Before Python 3.12 the server does not take over sys.path and would skip them silently.
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()


def exit_code_of(target: Any, *arguments: Any) -> int | None:
    """Run ``target`` in a child; negative when a signal ended it."""
    start_server()
    child = CHILDREN.Process(target=target, args=arguments)
    child.start()
    child.join(120)
    return child.exitcode
