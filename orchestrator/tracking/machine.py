"""What the driver's machine is busy with, under the names that MLflow's own monitor uses.

Not in the event log: nothing is decided by these numbers, and what cannot be sent is left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

_MEBIBYTE = 1 << 20


class Machine:
    """Samples processor, memory and disk.

    Args:
        folder: whose disk is looked at.
        proc: of Linux.
    """

    def __init__(self, folder: Path, proc: Path = Path("/proc")) -> None:
        self._folder = folder
        self._proc = proc
        self._before: tuple[int, int] | None = None

    def sample(self) -> dict[str, float]:
        """Values by metric; the processor's from the second call on, for the time between."""
        try:
            return {**self._processor(), **self._memory(), **self._disk()}
        except (OSError, ValueError, KeyError, IndexError):
            return {}  # No Linux, or one that tells nothing.

    def _processor(self) -> dict[str, float]:
        first = (self._proc / "stat").read_text().splitlines()[0].split()[1:9]
        ticks = [int(field) for field in first]
        # Of user, nice, system, idle, iowait, irq, softirq and steal, the fourth and fifth wait.
        idle, total = ticks[3] + ticks[4], sum(ticks)
        before, self._before = self._before, (idle, total)
        if before is None or total == before[1]:
            return {}
        waited = (idle - before[0]) / (total - before[1])
        return {"system/cpu_utilization_percentage": 100.0 * (1.0 - waited)}

    def _memory(self) -> dict[str, float]:
        lines = (self._proc / "meminfo").read_text().splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        used = kib["MemTotal"] - kib["MemAvailable"]
        return {
            "system/system_memory_usage_megabytes": used / 1024,
            "system/system_memory_usage_percentage": 100.0 * used / kib["MemTotal"],
        }

    def _disk(self) -> dict[str, float]:
        total, used, _ = shutil.disk_usage(self._folder)
        return {
            "system/disk_usage_megabytes": used / _MEBIBYTE,
            "system/disk_usage_percentage": 100.0 * used / total,
        }
