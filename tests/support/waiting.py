"""Waiting for what happens elsewhere."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


def wait_for(
    condition: Callable[[], _T],
    seconds: float = 300.0,
    process: subprocess.Popen[Any] | None = None,
    *,
    every: float = 0.02,
) -> _T:
    """Wait until something is so, and return what it is.

    Args:
        condition: what is waited for; asked again and again.
        seconds: after which it is waited for in vain.
        process: that has to bring it about, and has failed if it ends before.
        every: seconds between two questions.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
    return found
