"""What benchmarks that train have in common: painted data sets, and runs in this process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

from orchestrator.accelerators import Accelerator
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.training.job import Outcome
from orchestrator.training.session import run_rank

#: A class, counted from 0, and left, top, width and height of its box.
Object: TypeAlias = tuple[int, int, int, int, int]

#: A small SSD on a painted set; what a benchmark looks at is laid over it. Takes the root as JSON.
EXPERIMENT = """
name: painted
detector:
  name: ssd
  variant: ssd300_mobilenet_v2
  width: 0.1
  bn_momentum: 0.1
  postprocess: {score_threshold: 0.02, iou_threshold: 0.45, plus_one: false}
data:
  root: %s
  train: {images: train, annotations: train.json}
  val: {images: val, annotations: val.json}
train:
  epochs: 1000
  batch_size: 8
  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}
  schedule: {name: constant, warmup_steps: 20}
  evaluate_every_epochs: 1000
  checkpoint: {every_epochs: 1000}
tracking: {mlflow: null}
"""


def write_split(
    folder: Path,
    split: str,
    pictures: Iterable[tuple[np.ndarray, Sequence[Object]]],
    names: Sequence[str],
    suffix: str,
) -> None:
    """A split of a COCO data set: its pictures, BGR, with their objects, and its annotations."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, (picture, objects) in enumerate(pictures, start=1):
        file = f"{number}{suffix}"
        quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
        cv2.imwrite(str(folder / split / file), picture, quality)
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": file, "width": width, "height": height})
        for kind, *box in objects:
            owner = {"id": len(annotations) + 1, "image_id": number, "category_id": kind + 1}
            annotations.append(owner | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(tree))


def train(resolved: ResolvedExperiment, folder: Path) -> tuple[Plan, Outcome]:
    """Train in this process, on one thread, in a run folder as a run leaves it."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "resolved.yaml").write_text(dump_yaml(resolved))
    plan = make_plan(resolved, folder, threads=1)
    (folder / "label_map.json").write_text(plan.job.label_map.to_json())
    return plan, run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
