"""What this process asks of the C library's memory."""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache
from typing import Final

#: Parameters of glibc's mallopt(3), by their numbers in malloc.h, and what they are set to.
_KEEP_MEMORY: Final = (
    (-4, 0),  # M_MMAP_MAX: no block is mapped for itself
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: nothing free at the end of the heap is given back
    (-2, 2**26),  # M_TOP_PAD: the heap grows by 64 MB at a time
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
)


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Make the C library keep what this process frees, for what it allocates next.

    A training step on a CPU allocates and frees activations of tens of megabytes, and a task that
    prepares images batches of as many. glibc maps such blocks one by one and unmaps them again, and
    the system clears every page anew: that took 35 % of a step of SSD300 and a fifth of preparing
    an image of 512 x 512 (docs/lab-log.md). The process then stays as large as it ever was. Other C
    libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter, value in _KEEP_MEMORY:
            library.mallopt(parameter, value)
