"""Seconds from the loss of a process to the next step, with spare processes and without.

    python benchmarks/bench_restart.py [--rounds 3]

A small SSD on digits trains on a Ray of its own. In turns, a run with `cluster.spare_processes` and
one without lose a worker, then Ray Train's controller, once each a round, 45 s after the last
start, when what waits for the next one is there. *worker* is when worker 0 begins, *commit* when
all have the weights, *step* when one more is done.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from results import keep
from timing import table

# Runs whose parts are killed are those of the tests.
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.chaos_cluster import Run, kill_controller, kill_worker, make_folder

ARMS = {"with": True, "without": False}
KILLS = {"worker": kill_worker, "controller": kill_controller}
PARTS = ("worker", "commit", "step")
WARM_SECONDS = 45.0
#: More than there is time for.
EPOCHS = ("train.epochs=10000", "train.evaluate_every_epochs=10000")


def kills(run: Run, number: int) -> dict[str, dict[str, float]]:
    """Seconds to each part of the start after each kind of kill."""
    found = {}
    for name, kill in KILLS.items():
        time.sleep(WARM_SECONDS)
        starts = len(run.resumes())
        struck = time.time()
        kill(run, number)
        run.wait(lambda starts=starts: len(run.resumes()) > starts)
        run.wait(run.goes_on)
        found[name] = run.since(struck)
    return found


def main() -> None:
    """Print the medians of both arms, and how much faster the last column is with spares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="r-", ignore_cleanup_errors=True) as scratch:
        os.environ["RAY_TMPDIR"] = scratch
        folder = make_folder(Path(scratch))
        for number in range(options.rounds):
            for arm, spares in ARMS.items():
                run = Run(folder, None, f"{arm}-{number}")
                run.start(*EPOCHS, f"cluster.spare_processes={str(spares).lower()}")
                run.wait_for_step(3)
                for name, parts in kills(run, number).items():
                    seconds.setdefault((name, arm), []).append(parts)
                assert run.driver is not None
                run.driver.send_signal(signal.SIGTERM)
                run.finish(75)
    table("lost", "spares", *PARTS)
    medians = {
        case: {part: statistics.median(one[part] for one in all_of) for part in PARTS}
        for case, all_of in seconds.items()
    }
    for (name, arm), parts in medians.items():
        print(f"| {name} | {arm} | " + " | ".join(f"{parts[part]:.1f}" for part in PARTS) + " |")
    ratios = {
        f"{name}, times as fast with spares": medians[name, "without"]["step"]
        / medians[name, "with"]["step"]
        for name in KILLS
    }
    print(ratios)
    keep("restart", ratios)


if __name__ == "__main__":
    main()
