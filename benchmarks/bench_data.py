"""Images per second of the data path: bare decode + augment loop, in-process stream, Ray Data.

``python benchmarks/bench_data.py`` builds a digits set and measures on it; ``--images`` and
``--annotations`` take any COCO split. The arms alternate within each round and the median over the
rounds counts, since the load of a machine changes. With ``--step-ms`` the consumer spends that long
on every batch, as training does; then the CPU time of its process is what to look at.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray

from orchestrator.data.assemble import BatchPlan
from orchestrator.data.augment import SSDAugment
from orchestrator.data.batch import Batch
from orchestrator.data.coco import read_coco
from orchestrator.data.decode import read_image
from orchestrator.data.digits import Recipe, build_digits
from orchestrator.data.keyed import SampleKey
from orchestrator.data.ray_stream import ScheduledDataConfig
from orchestrator.data.schedule import Schedule
from orchestrator.data.stream import LocalStream

SIZE = (300, 300)


def bare(plan: BatchPlan, steps: int) -> Iterator[int]:
    """Decode and augment without assembling batches: the limit of one thread."""
    for step in range(steps):
        epoch = plan.schedule.epoch_of(step)
        for sample in plan.schedule.samples(step).tolist():
            image = read_image(plan.train.path(sample))
            boxes, labels = plan.train.training_boxes(sample)
            plan.augment(image, boxes, labels, SampleKey(plan.schedule.seed, epoch, sample))
        yield plan.schedule.batch_size


def sizes(batches: Iterator[Batch]) -> Iterator[int]:
    return (len(batch) for batch in batches)


def measure(counts: Iterator[int], step_seconds: float) -> dict[str, float]:
    """Consume; the first batch is timed apart, because streams have to start."""
    begin = time.perf_counter()
    next(counts)
    first = time.perf_counter()
    cpu = time.process_time()
    images = 0
    for count in counts:
        images += count
        time.sleep(step_seconds)
    seconds = time.perf_counter() - first
    return {
        "first_batch_s": first - begin,
        "images_per_s": images / seconds,
        "consumer_cpu_ms_per_image": 1e3 * (time.process_time() - cpu) / images,
    }


def make_plan(options: argparse.Namespace, folder: Path) -> BatchPlan:
    if options.images is None:
        build_digits(folder / "digits", Recipe(train=200, val=1))
        options.images = folder / "digits" / "images"
        options.annotations = folder / "digits" / "annotations" / "instances_train.json"
    data = read_coco(options.images, options.annotations).dataset
    per_epoch = len(data) // options.batch
    schedule = Schedule(
        seed=1,
        sample_ids=np.arange(len(data)),
        batch_size=options.batch,
        epochs=-(-options.steps // per_epoch),
    )
    return BatchPlan(
        train=data,
        val=data,
        schedule=schedule,
        augment=SSDAugment(size=SIZE),
        input_size=SIZE,
        box_slots=100,
        with_crowd=False,
        eval_batch=options.batch,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=2, help="map tasks of Ray Data at a time")
    parser.add_argument("--step-ms", type=float, default=0.0, help="consumer's time per batch")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        plan = make_plan(options, Path(folder))
        ray.init(
            address="local", num_cpus=options.tasks + 1, include_dashboard=False, _temp_dir=folder
        )
        config = ScheduledDataConfig(plan, tasks=options.tasks)
        stream = config.configure(config.datasets(), 1, None, None)[0]["train"]
        local = LocalStream(plan)
        arms: dict[str, Callable[[], Iterator[int]]] = {
            "bare loop": lambda: bare(plan, options.steps),
            "LocalStream": lambda: sizes(local.train_batches(0, options.steps)),
            "RayStream": lambda: sizes(stream.train_batches(0, options.steps)),
        }
        # The first execution starts the worker processes, once per run.
        list(stream.train_batches(0, min(options.steps, 4 * options.tasks)))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
        for _ in range(options.rounds):
            for name, start in arms.items():
                runs[name].append(measure(start(), options.step_ms / 1e3))
        ray.shutdown()

    result: dict[str, Any] = {
        name: {key: round(statistics.median(run[key] for run in of_arm), 3) for key in of_arm[0]}
        for name, of_arm in runs.items()
    }
    print(f"{'':12} {'images/s':>9} {'first batch s':>14} {'consumer CPU ms/image':>22}")
    for name, row in result.items():
        print(
            f"{name:12} {row['images_per_s']:9.1f} {row['first_batch_s']:14.3f} "
            f"{row['consumer_cpu_ms_per_image']:22.3f}"
        )
    settings = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "ray": ray.__version__,
        "batch": options.batch,
        "steps": options.steps,
        "rounds": options.rounds,
        "tasks": options.tasks,
        "step_ms": options.step_ms,
        "images": len(plan.train),
    }
    print(json.dumps({"settings": settings, "arms": result}))


if __name__ == "__main__":
    main()
