"""How many cores of its machine a process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> int:
    """Cores that this process may use, one at least; ``os.cpu_count`` counts those of the machine.

    They are those that it is bound to, as by ``taskset`` or a queue, and of them no more than the
    share of time that its container or service has (cgroups(7), versions 1 and 2).

    Args:
        own: says which groups the process is in.
        groups: where the groups are.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([bound or 1, *map(int, _quotas(own, groups))]))


def _quotas(own: Path, groups: Path) -> Iterator[float]:
    """Cores' worth of time that each group of a process has, and those that it is part of."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = groups / "cpu" if controllers else groups
        # A container may see its group as the root, and not below the name that it has outside.
        inner = Path(os.path.normpath(f"{base}/{path}"))
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(base):
                break
            with suppress(OSError, ValueError):
                if controllers:
                    quota = float((folder / "cpu.cfs_quota_us").read_text())
                    period = float((folder / "cpu.cfs_period_us").read_text())
                else:
                    quota, period = map(float, (folder / "cpu.max").read_text().split())
                if quota > 0 and period > 0:
                    yield quota / period
