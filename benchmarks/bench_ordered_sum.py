"""What it costs to add gradients in the order of the shards: CPU time of a step on gloo ranks.

    python benchmarks/bench_ordered_sum.py [--ranks 2 4] [--rounds 5] [EXPERIMENT.yaml]

Every rank does the same steps of the program's own stepper on drawn images with 7 boxes each, one
thread. *all-reduce* is ``train.virtual_shards: null``, where the backend adds; *ordered* is
``auto``, as many shards as ranks, with batch-norm statistics added up, too. The arms take turns
step by step. CPU time of the process, gloo's threads and system time included: median over the
steps of all rounds and ranks.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from results import keep
from timing import table

from detectors.registry import build_detector
from orchestrator.accelerators import Accelerator
from orchestrator.benchmark.device_parts import batch_of
from orchestrator.config.resolve import load_experiment
from orchestrator.training.collective import Collective
from orchestrator.training.stepper import Stepper

ARMS = ("all-reduce", "ordered")
CLASSES, WARM_UP, STEPS = 3, 2, 4


def _rank(rank: int, world: int, folder: str, path: str, images: int, rounds: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    experiment = load_experiment(path).experiment
    accelerator, device = Accelerator("cpu"), torch.device("cpu")
    steppers = {}
    for arm, shards in zip(ARMS, (None, "auto"), strict=True):
        torch.manual_seed(1)
        model = build_detector(experiment.detector, num_classes=CLASSES)
        changes = {"virtual_shards": shards, "batch_size": images * world, "accumulate": 1}
        steppers[arm] = Stepper(
            accelerator.place(model, device).train(),
            experiment.train.model_copy(update=changes),
            seed=1,
            accelerator=accelerator,
            precision="fp32",
            collective=Collective(device),
        )
    size = steppers[ARMS[0]].model.input_size
    taken: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for step in range(WARM_UP + rounds * STEPS):
        batch = batch_of(step * world + rank, images, size, classes=CLASSES)
        for arm in ARMS if step % 2 else reversed(ARMS):
            dist.barrier()
            begin = time.process_time()
            steppers[arm].run(batch, learning_rate=1e-3, stop=False)
            if step >= WARM_UP:
                taken[arm].append((time.process_time() - begin) * 1e3)
    torch.save(taken, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("experiment", nargs="?", default="experiments/quickstart.yaml")
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--images", type=int, default=8, help="of each rank")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    table("ranks", *(f"{arm}, ms" for arm in ARMS), "ordered / all-reduce")
    kept = {}
    for world in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            arguments_ = (world, folder, options.experiment, options.images, options.rounds)
            mp.spawn(_rank, args=arguments_, nprocs=world)
            found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
        medians = {arm: statistics.median(t for one in found for t in one[arm]) for arm in ARMS}
        # Each step of one arm has its like beside it.
        ratios = [
            b / a for one in found for a, b in zip(one["all-reduce"], one["ordered"], strict=True)
        ]
        cells = " | ".join(f"{medians[arm]:.1f}" for arm in ARMS)
        ratio = statistics.median(ratios)
        print(f"| {world} | {cells} | {ratio:.3f} |", flush=True)
        kept[f"all-reduce / ordered, {world} ranks"] = 1 / ratio
    keep("ordered_sum", kept)


if __name__ == "__main__":
    main()
