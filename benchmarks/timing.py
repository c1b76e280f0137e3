"""Times of small functions, taken in turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

#: Processor time of one measurement at least: many ticks of the clock.
LEAST_SECONDS = 0.05


def median_ms(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor time of each function in ms, over ``rounds`` rounds through all of them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            repeats, start = 0, time.process_time()
            while repeats == 0 or time.process_time() - start < LEAST_SECONDS:
                run()
                repeats += 1
            times[name].append((time.process_time() - start) / repeats * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}
