"""What Ray costs: images/s of a one-worker Ray Train run against the bare engine in one process.

Both train the same experiment from the same files with the same code, thread count and number of
steps; the arms alternate, so that a machine that speeds up or slows down does so for both. The
first epoch of each (warm-up of allocator, kernels and readers) is left out by the engine itself.

    python benchmarks/bench_overhead.py
    python benchmarks/bench_overhead.py experiments/ssd300_mobilenet_v2_bccd.yaml --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from results import keep

from orchestrator.accelerators import of_this_process
from orchestrator.config.resolve import load_experiment
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.training.session import run_rank


def bare(experiment: str, overrides: list[str], folder: Path, threads: int) -> float:
    """images/s of the engine in this process, batches made ahead by a thread."""
    resolved = load_experiment(experiment, overrides)
    folder.mkdir(parents=True)
    plan = make_plan(resolved, folder, threads=threads)
    accelerator = of_this_process(resolved.experiment.cluster.accelerator)
    outcome = run_rank(plan.job, LocalStream(plan.batches), accelerator=accelerator)
    return outcome.images_per_s


def _child(arguments: list[str]) -> str:
    """Output of a fresh Python process; both arms pay the same imports and start cold."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Alternate the arms, print a line each and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="experiments/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bare", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    common = [
        *options.overrides,
        f"train.max_steps={options.steps}",
        f"cluster.threads_per_worker={options.threads}",
        "cluster.workers=1",
        "tracking.mlflow=null",
    ]
    if options.bare:
        rate = bare(options.experiment, common, Path(options.bare), options.threads)
        print(json.dumps(rate))
        return
    rates: dict[str, list[float]] = {"bare": [], "ray": []}
    with tempfile.TemporaryDirectory() as scratch:
        if options.experiment == parser.get_default("experiment"):
            build_digits(Path(scratch) / "digits", Recipe())
            digits = f"data.root={scratch}/digits"
            options.overrides.append(digits)
            common.append(digits)
        for number in range(options.rounds):
            folder = f"{scratch}/bare-{number}"
            arguments = [__file__, options.experiment, *options.overrides]
            arguments += ["--bare", folder, "--steps", str(options.steps)]
            rates["bare"].append(
                json.loads(_child([*arguments, "--threads", str(options.threads)]))
            )
            run = [*common, f"storage={scratch}", f"name=ray-{number}"]
            _child(["-m", "orchestrator.run", options.experiment, *run])
            result = json.loads((Path(scratch) / f"ray-{number}" / "result.json").read_text())
            rates["ray"].append(result["images_per_s"])
            print(
                f"round {number + 1}: bare {rates['bare'][-1]:.2f} images/s, "
                f"Ray Train {rates['ray'][-1]:.2f} images/s, "
                f"ratio {rates['ray'][-1] / rates['bare'][-1]:.3f}",
                flush=True,
            )
    medians = {arm: statistics.median(values) for arm, values in rates.items()}
    print(json.dumps({**medians, "ratio": medians["ray"] / medians["bare"]}))
    keep("overhead", {"Ray Train of bare": medians["ray"] / medians["bare"]})


if __name__ == "__main__":
    main()
