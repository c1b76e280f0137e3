"""Images per second of the data path, pipeline by pipeline, beside what else one could run.

``python benchmarks/bench_data.py`` builds a digits set and measures on it; ``--images`` and
``--annotations`` take any COCO split. For the pipelines of SSD300 and M2Det-512, in one run:

- *decode*, *decode + augment*: CPU time per image of one thread, and their ratio;
- *bare loops*: ``--tasks`` processes that decode and augment and keep nothing;
- *DataLoader*: ``torch.utils.data.DataLoader`` with as many workers and the same work per sample;
- *LocalStream*: this program's batches without Ray, one thread;
- *RayStream*: the batches that a training worker gets through Ray Data, ``--tasks`` at a time.

``--tasks`` is how many processes the parallel arms prepare images with. As many as there are cores
leave none for Ray and for the process that takes the batches, as ``--tasks 1`` on two cores does.

The arms alternate within each round and the median over the rounds counts, also of the ratio to the
bare loops of the same round, since the speed of a machine changes: half of these run before the Ray
stream and half after it. Processes are started before: a stream's rate is the slope of images over
time, without its first quarter and its last eighth, whether batches come one by one or in blocks.
(A slope that goes to the end counts what was under way at its beginning, and then nothing is under
way any more.) The time from asking for the first batch to having it stands beside it, with the rate
over everything. With ``--step-ms`` the consumer spends that long on every batch, as training does;
then the CPU time of its process is what to look at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from results import keep
from torch.utils.data import DataLoader, Dataset

from orchestrator.config.augmentations import M2DetAugmentation, SSDAugmentation
from orchestrator.data.augment.protocol import build_augment
from orchestrator.data.batch import Batch
from orchestrator.data.counter_rng import SampleKey
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.data.images import image_pixels
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream
from orchestrator.data.stream.ray_streams import RayStreams
from orchestrator.data.stream.schedule import Schedule
from orchestrator.memory import keep_freed_memory

PIPELINES = {
    "ssd300": (SSDAugmentation(), (300, 300)),
    "m2det512": (M2DetAugmentation(), (512, 512)),
}
SLOTS = 100


def prepare(plan: BatchPlan, step: int, sample: int) -> Any:
    """Decode and augment one image."""
    image = image_pixels(plan.train, sample)
    boxes, labels = plan.train.training_boxes(sample)
    key = SampleKey(plan.schedule.seed, plan.schedule.epoch_of(step), sample)
    return plan.augment(image, boxes, labels, key)


def bare_loop(plan: BatchPlan, steps: range, first: Any, done: Any) -> None:
    """What one process of the bare loops does; its first image does not count."""
    prepare(plan, 0, int(plan.schedule.samples(0)[0]))
    first.wait()
    for step in steps:
        for sample in plan.schedule.samples(step).tolist():
            prepare(plan, step, sample)
    done.wait()


def bare(plan: BatchPlan, steps: int, tasks: int) -> float:
    """Images per second of ``tasks`` processes, each with its share of the steps."""
    context = multiprocessing.get_context("spawn")
    first, done = context.Barrier(tasks + 1), context.Barrier(tasks + 1)
    shares = [range(task, steps, tasks) for task in range(tasks)]
    processes = [context.Process(target=bare_loop, args=(plan, s, first, done)) for s in shares]
    for process in processes:
        process.start()
    first.wait()
    begin = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    return steps * plan.schedule.batch_size / seconds


class Samples(Dataset[dict[str, np.ndarray[Any, Any]]]):
    """The same work per sample for a DataLoader, boxes padded so that it can stack them."""

    def __init__(self, plan: BatchPlan, steps: int) -> None:
        self.plan = plan
        self.order = np.concatenate([plan.schedule.samples(step) for step in range(steps)])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, np.ndarray[Any, Any]]:
        step = position // self.plan.schedule.batch_size
        made = prepare(self.plan, step, int(self.order[position]))
        boxes = np.zeros((SLOTS, 4), np.float32)
        labels = np.zeros(SLOTS, np.int64)
        count = min(len(made.boxes), SLOTS)
        boxes[:count], labels[:count] = made.boxes[:count], made.labels[:count]
        return {"images": made.image, "boxes": boxes, "labels": labels}


def sizes(batches: Iterator[Batch]) -> Iterator[int]:
    return (len(batch) for batch in batches)


def measure(counts: Iterator[int], step_seconds: float) -> dict[str, float]:
    """Consume all batches of a stream."""
    begin, cpu = time.perf_counter(), time.process_time()
    seconds, images = [], []
    for count in counts:
        seconds.append(time.perf_counter() - begin)
        images.append(count)
        time.sleep(step_seconds)
    total = np.cumsum(images)
    settled = slice(len(images) // 4, len(images) - len(images) // 8)
    return {
        "images_per_s": float(np.polyfit(seconds[settled], total[settled], 1)[0]),
        "first_batch_s": seconds[0],
        "with_start_per_s": float(total[-1]) / seconds[-1],
        "consumer_cpu_ms_per_image": 1e3 * (time.process_time() - cpu) / float(total[-1]),
    }


def one_thread(plan: BatchPlan, steps: int) -> dict[str, float]:
    """CPU milliseconds per image of decoding alone, and with augmentation."""
    samples = [(s, i) for s in range(steps) for i in plan.schedule.samples(s).tolist()]
    begin = time.process_time()
    for _, sample in samples:
        image_pixels(plan.train, sample)
    middle = time.process_time()
    for step, sample in samples:
        prepare(plan, step, sample)
    decode = 1e3 * (middle - begin) / len(samples)
    both = 1e3 * (time.process_time() - middle) / len(samples)
    return {"decode_ms": decode, "decode_augment_ms": both, "share_of_decode_only": decode / both}


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
    augmentation, size = PIPELINES["ssd300"]
    return BatchPlan(
        train=data,
        val=data,
        schedule=schedule,
        augment=build_augment(augmentation, size),
        input_size=size,
        box_slots=SLOTS,
        with_crowd=False,
        eval_batch=options.batch,
    )


def compare(plan: BatchPlan, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All arms on one pipeline."""
    stream = RayStreams(plan, tasks=options.tasks).stream()
    local = LocalStream(plan)
    seconds = options.step_ms / 1e3

    loader = DataLoader(
        Samples(plan, options.steps),
        batch_size=options.batch,
        num_workers=options.tasks,
        multiprocessing_context="spawn",
        persistent_workers=True,
    )

    others: dict[str, Callable[[], dict[str, float]]] = {
        "DataLoader": lambda: measure((len(b["images"]) for b in loader), seconds),
        "LocalStream": lambda: measure(sizes(local.train_batches(0, options.steps // 4)), seconds),
        "one thread": lambda: one_thread(plan, max(1, options.steps // 32)),
    }
    # As the training process does; tasks do it by themselves.
    keep_freed_memory()
    # Processes start once per run, not once per round.
    next(iter(loader))
    for _ in stream.train_batches(0, options.steps // 6):
        pass
    runs: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        before = bare(plan, options.steps // 2, options.tasks)
        of_ray = measure(sizes(stream.train_batches(0, options.steps)), seconds)
        after = bare(plan, options.steps // 2, options.tasks)
        beside = (before + after) / 2
        made = {"bare loops": {"images_per_s": beside}, "RayStream": of_ray}
        made |= {name: run() for name, run in others.items()}
        for name, of_arm in made.items():
            if "images_per_s" in of_arm:
                of_arm["x_bare"] = of_arm["images_per_s"] / beside
            runs.setdefault(name, []).append(of_arm)
    return {
        name: {key: round(statistics.median(run[key] for run in of_arm), 3) for key in of_arm[0]}
        for name, of_arm in runs.items()
    }


def show(name: str, result: dict[str, dict[str, float]]) -> None:
    thread = result["one thread"]
    print(
        f"\n{name}: decode {thread['decode_ms']:.2f} ms, with augmentation "
        f"{thread['decode_augment_ms']:.2f} ms, {thread['share_of_decode_only']:.0%} of decode-only"
    )
    columns = (
        ("first_batch_s", "first batch s", 15),
        ("with_start_per_s", "with start", 12),
        ("consumer_cpu_ms_per_image", "consumer CPU ms", 17),
    )
    titles = "".join(f"{title:>{width}}" for _, title, width in columns)
    print(f"{'':12} {'images/s':>9} {'x bare':>7}{titles}")
    for arm, row in result.items():
        if arm == "one thread":
            continue
        rest = "".join(f"{row[key]:{width}.2f}" for key, _, width in columns if key in row)
        print(f"{arm:12} {row['images_per_s']:9.1f} {row['x_bare']:7.2f}{rest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--annotations", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=2, help="processes of every parallel arm")
    parser.add_argument("--step-ms", type=float, default=0.0, help="consumer's time per batch")
    parser.add_argument("--pipeline", choices=PIPELINES, action="append", default=[])
    options = parser.parse_args()

    loads = [os.getloadavg()[0]]
    results = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        base = make_plan(options, Path(folder))
        # As a run starts its own Ray, but for the folder.
        ray.init(
            address="local",
            num_cpus=options.tasks + 1,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        for name in options.pipeline or PIPELINES:
            augmentation, size = PIPELINES[name]
            plan = replace(base, augment=build_augment(augmentation, size), input_size=size)
            results[name] = compare(plan, options)
            loads.append(os.getloadavg()[0])
            show(name, results[name])
        ray.shutdown()
    settings = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": loads,
        "python": platform.python_version(),
        "ray": ray.__version__,
        "batch": options.batch,
        "steps": options.steps,
        "rounds": options.rounds,
        "tasks": options.tasks,
        "step_ms": options.step_ms,
        "images": len(base.train),
    }
    print(json.dumps({"settings": settings, "arms": results}))
    keep(
        "data",
        {
            f"{name}: {arm} of bare": row["x_bare"]
            for name, arms in results.items()
            for arm, row in arms.items()
            if "x_bare" in row
        },
    )


if __name__ == "__main__":
    main()
