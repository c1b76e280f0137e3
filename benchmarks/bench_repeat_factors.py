"""A class with 1 % of the boxes: its AP with repeat factors and without, in the same steps.

    python benchmarks/bench_repeat_factors.py FOLDER [--steps 300] [--seeds 1]

Discs, squares and, in few images, triangles on textured noise; as many of each in validation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.storage.run_files import PER_CLASS
from orchestrator.training.session import run_rank

SIDE = 200
NAMES = ("disc", "square", "triangle")
EXPERIMENT = """
name: rare
seed: %d
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
  augmentation: {name: ssd}
train:
  epochs: 1000
  batch_size: 8
  optimizer: {name: adamw, lr: 2.0e-3, weight_decay: 0.05}
  schedule: {name: constant, warmup_steps: 20}
  evaluate_every_epochs: 1000
  checkpoint: {every_epochs: 1000}
tracking: {mlflow: null}
"""


def paint(picture: np.ndarray, kind: int, x: int, y: int, side: int) -> None:
    colour = (230, 230, 230)
    if kind == 0:
        half = side // 2
        cv2.circle(picture, (x + half, y + half), half, colour, -1)
    elif kind == 1:
        picture[y : y + side, x : x + side] = colour
    else:
        corners = np.array([[x, y + side], [x + side, y + side], [x + side // 2, y]])
        cv2.fillPoly(picture, [corners], colour)


def make_images(folder: Path, split: str, kinds: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, own in enumerate(kinds):
        noise = rng.integers(40, 170, (SIDE // 4, SIDE // 4, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (SIDE, SIDE))
        # A cell of its own for each object.
        for cell, kind in zip(rng.permutation(4).tolist(), own, strict=False):
            side = int(rng.integers(40, 80))
            x = cell % 2 * 100 + int(rng.integers(0, 100 - side))
            y = cell // 2 * 100 + int(rng.integers(0, 100 - side))
            paint(picture, kind, x, y, side)
            one = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": kind + 1}
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append(one | box)
        name = f"{number}.png"
        cv2.imwrite(str(folder / split / name), picture)
        images.append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{split}.json").write_text(json.dumps(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 2, 4).tolist() for _ in range(150)]
    for number in range(6):
        train[number * 25][0] = 2  # 6 of 600 boxes
    make_images(folder, "train", train, seed=1)
    make_images(folder, "val", [rng.integers(0, 3, 4).tolist() for _ in range(60)], seed=2)
    for seed in range(1, arguments.seeds + 1):
        for name, overrides in (("once each", []), ("t = 0.5", ["data.repeat_threshold=0.5"])):
            file = folder / "rare.yaml"
            file.write_text(EXPERIMENT % (seed, json.dumps(str(folder))))
            steps = f"train.max_steps={arguments.steps}"
            run = folder / f"{seed}-{len(overrides)}"
            run.mkdir()
            plan = make_plan(load_experiment(file, [*overrides, steps]), run, threads=1)
            run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
            scores = (run / PER_CLASS).read_text().splitlines()
            ap = {line.split(",")[0]: line.split(",")[4:6] for line in scores[1:]}
            steps_per_epoch = plan.job.schedule.steps_per_epoch
            print(f"seed {seed}, {name}: {steps_per_epoch} steps an epoch, {ap}", flush=True)


if __name__ == "__main__":
    main()
