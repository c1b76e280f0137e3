"""What a dead MLflow server costs a training step, against tracking switched off.

    python benchmarks/bench_tracking.py [--rounds 40] [--steps 20]

One engine trains a small SSD, logging every step. Three arms take turns, ``--steps`` steps each and
in another order in each of ``--rounds`` rounds: `off` without a process that ships, `refused` with
one whose server's port is closed, `silent` with one whose server takes connections and never
answers. Both processes are started before, and stopped with SIGSTOP while it is not their turn. A
process that goes on tries its server at once, so it tries more often than the once a minute that
it does in a real outage.

Of each arm the median step of a round is compared with that of `off` in the same round; the median
of these ratios counts. `cpu` is the CPU time of the training thread, which the load of the machine
changes less. What the shipping process takes of a core is the most that it can take from a step
which it shares that core with.

Goal: at most 1.01.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
from results import keep

from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.batch import Batch
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.mlflow_shipper import LOG_FILE, MlflowShipper
from orchestrator.tracking.ship import FAILURE
from orchestrator.tracking.ship_state import RunSpec
from orchestrator.training.session import run_rank

EXPERIMENT = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
#: Steps before the first round: allocator, kernels and averages warm up.
WARM = 20
#: Batches that are used again and again, so that none has to be made while steps are timed.
KEPT = 8


@dataclass
class Arm:
    """One way of tracking, and what its steps took.

    Attributes:
        name: of the arm.
        process: that ships; None for no tracking.
        rounds: median wall and thread CPU milliseconds of a step in each round.
        shipping: CPU seconds that the process used in its turns.
        seconds: of all turns.
    """

    name: str
    process: psutil.Process | None = None
    rounds: list[tuple[float, float]] = field(default_factory=list)
    shipping: float = 0.0
    seconds: float = 0.0

    def used(self) -> float:
        """CPU seconds of the process so far."""
        return 0.0 if self.process is None else sum(self.process.cpu_times()[:2])

    def turn(self, steps: list[tuple[float, float]], used: float) -> None:
        """Take in the steps of one turn, and the CPU seconds used before it."""
        wall, cpu = (statistics.median(column) * 1e3 for column in zip(*steps, strict=True))
        self.rounds.append((wall, cpu))
        self.shipping += self.used() - used
        self.seconds += sum(wall for wall, _ in steps)


class Turns(LocalStream):
    """The same batches again and again; the time between two of them is that of a step."""

    def __init__(self, plan: Plan, arms: list[Arm], rounds: int, steps: int) -> None:
        super().__init__(plan.batches)
        self.arms, self.turns, self.steps = arms, rounds, steps

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        kept = list(super().train_batches(0, KEPT))
        order = random.Random(0)
        step = 0

        def timed(count: int) -> Iterator[Batch]:
            nonlocal step, taken
            taken = []
            for _ in range(count):
                wall, cpu = time.perf_counter(), time.thread_time()
                yield replace(kept[step % KEPT], step=step)
                taken.append((time.perf_counter() - wall, time.thread_time() - cpu))
                step += 1

        taken: list[tuple[float, float]] = []
        yield from timed(WARM)
        for _ in range(self.turns):
            for arm in order.sample(self.arms, len(self.arms)):
                used = arm.used()
                if arm.process is not None:
                    arm.process.resume()
                yield from timed(self.steps)
                if arm.process is not None:
                    arm.process.suspend()
                arm.turn(taken, used)


def start_shipping(name: str, folder: Path, port: int, log: Path) -> tuple[Arm, MlflowShipper]:
    """An arm whose process has failed once, which is when all it needs is loaded."""
    folder.mkdir()
    (folder / EVENTS).symlink_to(log)
    shipper = MlflowShipper(folder, RunSpec(f"http://127.0.0.1:{port}", "bench", name))
    shipper.start()
    (process,) = (p for p in psutil.Process().children() if str(folder) in p.cmdline())
    while FAILURE not in (folder / LOG_FILE).read_text():
        time.sleep(0.2)
    process.suspend()
    return Arm(name, process), shipper


def main() -> None:
    """Train, and print a line for each arm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=20, help="of each arm in a round")
    options = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build_digits(scratch / "digits", Recipe(train=64, val=4))
        total = WARM + 3 * options.rounds * options.steps
        overrides = [
            f"data.root={scratch}/digits",
            "detector.width=0.1",
            *("train.batch_size=4", f"train.epochs={total}", f"train.max_steps={total}"),
            *("train.evaluate_every_epochs=1000000", "train.checkpoint.every_epochs=1000000"),
            *("train.log_every_steps=1", "tracking.mlflow=null"),
        ]
        run_dir = scratch / "run"
        run_dir.mkdir()
        plan = make_plan(load_experiment(EXPERIMENT, overrides), run_dir, threads=1)

        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        with socket.create_server(("127.0.0.1", 0)) as closed:
            ports = {"refused": closed.getsockname()[1], "silent": silent.getsockname()[1]}
        arms = [Arm("off")]
        for name, port in ports.items():
            arm, shipper = start_shipping(name, scratch / name, port, run_dir / EVENTS)
            stack.callback(shipper.close, "KILLED", timeout=0.0)
            arms.append(arm)
        stream = Turns(plan, arms, options.rounds, options.steps)
        run_rank(plan.job, stream, accelerator=Accelerator("cpu"))

    print(f"{options.rounds} rounds of {options.steps} steps an arm, one thread, "
          f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    kept = {}
    for arm in arms:
        wall, cpu = (statistics.median(column) for column in zip(*arm.rounds, strict=True))
        print(f"{arm.name:8} step {wall:7.2f} ms   cpu {cpu:7.2f} ms", end="")
        if arm.process is None:
            print()
            continue
        ratios = [
            [mine / off for mine, off in zip(a, b, strict=True)]
            for a, b in zip(arm.rounds, arms[0].rounds, strict=True)
        ]
        wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"   to off: wall {wall:.4f}, cpu {cpu:.4f}   "
              f"shipping takes {100 * arm.shipping / arm.seconds:.2f} % of a core")  # fmt: skip
        kept[f"step without tracking / {arm.name}, CPU"] = 1 / cpu
    keep("tracking", kept)


if __name__ == "__main__":
    main()
