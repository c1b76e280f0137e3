"""Objects of 12 pixels on images of 2,000: AP with tiles and without, in the same training time.

    python benchmarks/bench_tiles.py FOLDER [--seconds 120]

Discs and squares lie on textured noise. Both arms train the same network from the same seed on one
thread. Their rates are measured on a few steps first, and each then takes as many steps as fill the
time; evaluation comes on top.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np

from orchestrator.accelerators import Accelerator
from orchestrator.benchmark.training import Trainer
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.training.session import run_rank

SIDE, OBJECT = 2000, 12
EXPERIMENT = """
name: tiles
detector:
  name: ssd
  variant: ssd300_mobilenet_v2
  width: 0.35
  bn_momentum: 0.1
  postprocess: {score_threshold: 0.02, iou_threshold: 0.45, plus_one: false, max_per_image: 300}
data:
  root: %s
  train: {images: train, annotations: train.json}
  val: {images: val, annotations: val.json}
  augmentation: {name: none}
train:
  epochs: 1000
  batch_size: 8
  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}
  schedule: {name: constant, warmup_steps: 20}
  evaluate_every_epochs: 1000
  checkpoint: {every_epochs: 1000}
tracking: {mlflow: null}
"""
TILES = ["data.tiles.size=[160, 160]", "data.tiles.overlap=24", "data.keep_decoded=2"]


def make_images(folder: Path, split: str, count: int, objects: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        noise = rng.integers(60, 190, (SIDE // 4, SIDE // 4, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        taken = np.zeros((SIDE, SIDE), bool)
        for _ in range(objects):
            x, y = (int(v) for v in rng.integers(0, SIDE - OBJECT, 2))
            if taken[max(0, y - 8) : y + 20, max(0, x - 8) : x + 20].any():
                continue
            taken[y : y + OBJECT, x : x + OBJECT] = True
            square = int(rng.integers(2))
            patch = picture[y : y + OBJECT, x : x + OBJECT]
            if square:
                patch[:] = (230, 240, 20)
            else:
                cv2.circle(patch, (OBJECT // 2, OBJECT // 2), OBJECT // 2 - 1, (20, 20, 240), -1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": 1 + square,
                    "bbox": [x, y, OBJECT, OBJECT],
                    "area": OBJECT * OBJECT,
                    "iscrowd": 0,
                }
            )
        name = f"{number}.jpg"
        cv2.imwrite(str(folder / split / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
        images.append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
    categories = [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(tree))


def train(folder: Path, name: str, *overrides: str) -> tuple[float, dict[str, float]]:
    """Seconds that the steps of a run took with all around them, and its last scores."""
    file = folder / "tiles.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(folder)))
    cache = f"data.cache={folder / 'cache'}"
    resolved = load_experiment(file, [*overrides, cache])
    run = folder / name
    (run / "config").mkdir(parents=True)
    (run / "config" / "resolved.yaml").write_text(dump_yaml(resolved))
    plan = make_plan(resolved, run, threads=1)
    (run / "label_map.json").write_text(plan.job.label_map.to_json())
    started = time.perf_counter()
    outcome = run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
    return time.perf_counter() - started, outcome.to_json()["metrics"] or {}


def rate(folder: Path, *overrides: str) -> float:
    """Steps a second, training alone, of the batches after the first three."""
    file = folder / "tiles.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(folder)))
    cache = f"data.cache={folder / 'cache'}"
    trainer = Trainer(load_experiment(file, [*overrides, cache]), Accelerator("cpu"))
    return 12 / sum(trainer.steps(15)[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    folder = arguments.folder
    make_images(folder, "train", 16, 120, seed=1)
    make_images(folder, "val", 2, 120, seed=2)
    for name, overrides in (("tiles", TILES), ("whole", [])):
        speed = rate(folder, *overrides)
        steps = max(1, round(speed * arguments.seconds))
        seconds, metrics = train(folder, name, *overrides, f"train.max_steps={steps}")
        numbers = {key: round(value, 4) for key, value in metrics.items() if "AP" in key}
        print(
            f"{name}: {steps} steps of 8 at {8 * speed:.1f} images/s, {seconds:.0f} s with "
            f"evaluation: {numbers}",
            flush=True,
        )


if __name__ == "__main__":
    main()
