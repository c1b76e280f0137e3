"""A run of a tiny detector on twelve generated images, as commands after training find it.

The statistics follow within the few steps it takes: with those it begins with, what is in an image
would vanish on its way through the layers, and all outputs would be equal.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from orchestrator.accelerators import Accelerator
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.training.session import run_rank

EXPERIMENT = """
name: tiny
detector:
  name: ssd
  variant: ssd300_mobilenet_v2
  width: 0.1
  bn_momentum: 0.6
  postprocess: {score_threshold: 0.01, max_per_image: 100, plus_one: false}
data:
  root: %s
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
  augmentation: {name: none}
train:
  epochs: 4
  batch_size: 4
  optimizer: {name: adamw, lr: 0.003}
  schedule: {name: constant}
  evaluate_every_epochs: 2
  ema: {decay: 0.4, warmup_steps: 0}
  checkpoint: {every_epochs: 2, keep_last: 2, keep_best: 1}
tracking: {mlflow: null}
"""


def make_run(folder: Path, *overrides: str, data: Path | None = None) -> Path:
    """Train in ``folder``/tiny, or go on there, and return that run folder.

    Args:
        folder: of the run, and of its data where ``data`` names none.
        overrides: of the experiment, as on the command line.
        data: made by :func:`make_data` before.
    """
    if data is None:
        data = folder / "squares"
        make_data(data)
    file = folder / "tiny.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(data)))
    resolved = load_experiment(file, overrides)
    run = folder / "tiny"
    (run / "config").mkdir(parents=True, exist_ok=True)
    (run / "config" / "resolved.yaml").write_text(dump_yaml(resolved))
    plan = make_plan(resolved, run, threads=1)
    (run / "label_map.json").write_text(plan.job.label_map.to_json())
    outcome = run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
    (run / "result.json").write_text(json.dumps(outcome.to_json()))
    return run


def make_data(folder: Path) -> None:
    """Twelve images to learn from and seven to score: a large bright or dark rectangle in each."""
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for split, count, first in (("train", 12, 100), ("val", 7, 200)):
        images, annotations = [], []
        for number in range(first, first + count):
            height, width = int(rng.integers(90, 130)), int(rng.integers(90, 130))
            pixels = rng.integers(100, 156, (height, width, 3)).astype(np.uint8)
            bright = number % 2
            x, y, w, h = (int(v) for v in rng.integers((5, 5, 50, 50), (30, 30, 60, 60)))
            pixels[y : y + h, x : x + w] = 250 if bright else 5
            name = f"{number}.png"
            cv2.imwrite(str(folder / "images" / name), pixels)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations.append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 70 if bright else 3,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
        tree = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "dark"}, {"id": 70, "name": "bright"}],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(tree))
