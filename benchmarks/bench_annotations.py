"""Reading annotations of COCO train2017's size, and what they cost every further worker.

``python benchmarks/bench_annotations.py`` writes a synthetic file of 118,287 images and 860,000
boxes with polygons, as large as the original (some 450 MB), and empty image files. It measures

- check and load: from the file to checked records and the plan of all batches, wall and CPU time;
- memory: a plan is put into Ray's object store; each of ``--workers`` processes takes it out and
  asks for a step. What counts is its private memory (USS) before and after; shared pages are there
  once a node.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray

from orchestrator.config.schema.data import DataConfig, SplitConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.stream.assemble import BatchPlan

IMAGES, BOXES, CLASSES = 118_287, 860_000, 80


def write_set(folder: Path) -> Path:
    """The annotation file and its empty images."""
    rng = np.random.Generator(np.random.PCG64(1))
    (folder / "images").mkdir()
    names = [f"{number:012d}.jpg" for number in range(1, IMAGES + 1)]
    for name in names:
        os.close(os.open(folder / "images" / name, os.O_CREAT | os.O_WRONLY))
    owners = np.sort(rng.integers(0, IMAGES, BOXES)).tolist()
    boxes = np.round(rng.uniform(1, 300, (BOXES, 4)), 2).tolist()
    polygons = np.round(rng.uniform(1, 600, (1000, 44)), 2).tolist()
    path = folder / "instances.json"
    with path.open("w") as file:
        images = [
            {
                "license": 3,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/train2017/{name}",
                "height": 640,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "id": number,
            }
            for number, name in enumerate(names, start=1)
        ]
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        file.write(json.dumps({"images": images, "categories": categories})[:-1])
        file.write(', "annotations": [')
        for row, (owner, box) in enumerate(zip(owners, boxes, strict=True)):
            annotation = {
                "segmentation": [polygons[row % 1000]],
                "area": box[2] * box[3],
                "iscrowd": 0,
                "image_id": owner + 1,
                "bbox": box,
                "category_id": row % CLASSES + 1,
                "id": row + 1,
            }
            file.write((", " if row else "") + json.dumps(annotation))
        file.write("]}")
    return path


def make_plan(data: Dataset) -> BatchPlan:
    split = SplitConfig(images="images", annotations="instances.json")
    return BatchPlan.from_config(
        DataConfig(train=split, val=split),
        data,
        data,
        seed=1,
        epochs=1,
        batch_size=64,
        workers=1,
        input_size=(300, 300),
    )


@ray.remote(num_cpus=0)
class Worker:
    """A process that has what map tasks have imported, and then gets the plan."""

    def megabytes(self) -> float:
        import orchestrator.data.stream.ray_stream  # noqa: F401

        return psutil.Process().memory_full_info().uss / 1e6

    def load(self, refs: list[Any]) -> float:
        self.plan = ray.get(refs[0])
        self.plan.schedule.rank_samples(17, 0, 1)
        for index in range(0, len(self.plan.train), 100):
            self.plan.train.path(index)
            self.plan.train.training_boxes(index)
        return psutil.Process().memory_full_info().uss / 1e6


def memory(plan: BatchPlan, workers: int, folder: str) -> list[float]:
    """Megabytes of private memory that the plan costs each worker."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, _temp_dir=folder)
    ref = ray.put(plan)
    grown = []
    processes = [Worker.remote() for _ in range(workers)]
    for process in processes:
        before = ray.get(process.megabytes.remote())
        grown.append(ray.get(process.load.remote([ref])) - before)
    ray.shutdown()
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = write_set(Path(folder))
        size = path.stat().st_size
        wall, cpu = time.perf_counter(), time.process_time()
        data = read_coco(Path(folder) / "images", path).dataset
        plan = make_plan(data)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        grown = memory(plan, options.workers, folder)
    load = os.getloadavg()[0]
    print(f"{size / 1e6:.0f} MB, {len(data)} images, {len(data.labels)} boxes, load {load:.1f}")
    print(f"check and load: {wall:.1f} s, {cpu:.1f} s of CPU time")
    print("private memory of each further worker: " + ", ".join(f"{mb:.1f} MB" for mb in grown))
    settings = {"machine": platform.machine(), "python": platform.python_version(), "load": load}
    print(json.dumps({"settings": settings, "wall_s": wall, "cpu_s": cpu, "worker_mb": grown}))


if __name__ == "__main__":
    main()
