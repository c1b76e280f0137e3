"""Memory: what is asked of the C library and of Python, the most held, errors for want of it."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Final

#: Parameters of glibc's mallopt(3), by their numbers in malloc.h, and what they are set to.
_KEEP_MEMORY: Final = (
    (-4, 0),  # M_MMAP_MAX: no block is mapped for itself
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: nothing free at the end of the heap is given back
    (-2, 2**26),  # M_TOP_PAD: the heap grows by 64 MB at a time
    (-8, 1),  # M_ARENA_MAX: one heap for all threads
)

#: What libraries say, in lower case, when a machine or a device has no memory left: torch's
#: allocators, torch_npu and CANN, drivers of devices ("CUDA error: out of memory"), and cuBLAS and
#: cuDNN by the names of their statuses.
_NO_MEMORY: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "failed to allocate memory",
    "status_alloc_failed",
    "allocation_failed",
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


def peak_bytes() -> int:
    """The most memory that this process has held at a time.

    ``getrusage`` counts what a process was before it became another program as well: one that a
    large process starts has the peak of that one from its beginning. Where Linux says the peak of
    the program alone, that is taken.
    """
    try:
        said = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        said = ""
    found = re.search(r"^VmHWM:\s*(\d+) kB$", said, re.MULTILINE)
    if found is not None:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def wants_memory(error: BaseException) -> bool:
    """Whether an error says that a machine or a device has no memory left.

    Most have no class of their own. One that merely speaks of memory, such as an illegal access of
    it, is another matter.
    """
    said = str(error).lower()
    short = isinstance(error, RuntimeError) and any(words in said for words in _NO_MEMORY)
    return short or isinstance(error, MemoryError)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Look for no reference cycles in the block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def importing() -> Iterator[None]:
    """Import large packages in the block.

    What they make stays until the process ends, and to look through it again and again, and a last
    time at the end, takes a third of the time.
    """
    with no_garbage_collection():
        yield
        gc.freeze()
