"""A training step on a CPU: as torch does it by itself, and as `Accelerator.place` sets it up.

    python benchmarks/bench_cpu_step.py [--rounds 5] [EXPERIMENT.yaml ...]

Forward pass, loss, backward pass and optimizer of the detectors of small experiments, on drawn
images with 7 boxes each, one thread. *torch* is the network in channels_last and nothing else,
*oneDNN* moves the 1x1 convolutions of small batches to oneDNN, *memory* has the C library keep what
is freed, *placed* is both, which is what every run does. The memory policy belongs to a process, so
each figure comes from one of its own; arms take turns in every round. CPU time of the process,
system time included, median of the steps of all rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from timing import table

from detectors.registry import build_detector
from orchestrator.accelerators import use_onednn
from orchestrator.benchmark.device_parts import batch_of
from orchestrator.config.resolve import load_experiment
from orchestrator.memory import keep_freed_memory
from orchestrator.training.feeding import inputs_of
from orchestrator.training.optim import build_optimizer

ARMS = ("torch", "oneDNN", "memory", "placed")
EXPERIMENTS = (
    "experiments/quickstart.yaml",
    "experiments/retinanet_spinenet_bccd.yaml",
    "experiments/faster_rcnn_bccd.yaml",
)
CLASSES = 3
WARM_UP, STEPS = 2, 8


def steps(path: str, arm: str) -> list[float]:
    """CPU ms of each step."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    experiment = load_experiment(path).experiment
    model = build_detector(experiment.detector, num_classes=CLASSES).train()
    model.to(memory_format=torch.channels_last)
    if arm in ("oneDNN", "placed"):
        use_onednn(model)
    if arm in ("memory", "placed"):
        keep_freed_memory()
    optimizer = build_optimizer(model, experiment.train.optimizer)
    batch = batch_of(1, experiment.train.batch_size, model.input_size, classes=CLASSES)
    images, targets = inputs_of(batch, torch.device("cpu"))
    taken = []
    for _ in range(WARM_UP + STEPS):
        start = time.process_time()
        torch.stack(list(model.loss(images, targets).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append((time.process_time() - start) * 1e3)
    return taken[WARM_UP:]


def in_a_process(path: str, arm: str) -> list[float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, path, "--arm", arm]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    times: list[float] = json.loads(done.stdout.splitlines()[-1])
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.arm:
        print(json.dumps(steps(options.experiments[0], options.arm)))
        return
    table("experiment", *ARMS, "torch / placed")
    for path in options.experiments:
        times: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for _ in range(options.rounds):
            for arm in ARMS:
                times[arm] += in_a_process(path, arm)
        medians = {arm: statistics.median(values) for arm, values in times.items()}
        cells = " | ".join(f"{medians[arm]:.0f}" for arm in ARMS)
        name = Path(path).stem
        print(f"| {name} | {cells} | {medians['torch'] / medians['placed']:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
