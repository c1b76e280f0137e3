"""Times of small functions, taken in turns, so that what slows the machine slows all of them."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch

import native

#: Processor time of one measurement at least: many ticks of the clock.
LEAST_SECONDS = 0.05


def rounds_asked(doc: str) -> int:
    """``--rounds`` of a command whose first line says what it is; one thread from now on."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"kernels: {native.backend()}\n")
    return rounds


def table(*columns: str) -> None:
    """The head of a table."""
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


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
