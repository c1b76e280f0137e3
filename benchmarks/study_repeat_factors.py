"""A class with 1 % of the boxes: its AP with repeat factors and without, in the same steps.

    python benchmarks/study_repeat_factors.py FOLDER [--steps 300] [--seeds 1]

Discs, squares and, in few images, triangles on textured noise; as many of each in validation.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from small_runs import EXPERIMENT, Object, train, write_split

from orchestrator.config.resolve import load_experiment
from orchestrator.storage.run_files import PER_CLASS

SIDE = 200
NAMES = ("disc", "square", "triangle")


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


def pictures(kinds: list[list[int]], seed: int) -> Iterator[tuple[np.ndarray, list[Object]]]:
    rng = np.random.default_rng(seed)
    for own in kinds:
        noise = rng.integers(40, 170, (SIDE // 4, SIDE // 4, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (SIDE, SIDE))
        placed = []
        # A cell of its own for each object.
        for cell, kind in zip(rng.permutation(4).tolist(), own, strict=False):
            side = int(rng.integers(40, 80))
            x = cell % 2 * 100 + int(rng.integers(0, 100 - side))
            y = cell // 2 * 100 + int(rng.integers(0, 100 - side))
            paint(picture, kind, x, y, side)
            placed.append((kind, x, y, side, side))
        yield picture, placed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder
    rng = np.random.default_rng(0)
    learnt = [rng.integers(0, 2, 4).tolist() for _ in range(150)]
    for number in range(6):
        learnt[number * 25][0] = 2  # 6 of 600 boxes
    val = [rng.integers(0, 3, 4).tolist() for _ in range(60)]
    for split, kinds, seed in (("train", learnt, 1), ("val", val, 2)):
        write_split(folder, split, pictures(kinds, seed), NAMES, ".png")
    file = folder / "rare.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(folder)))
    for seed in range(1, arguments.seeds + 1):
        for name, overrides in (("once each", []), ("t = 0.5", ["data.repeat_threshold=0.5"])):
            own = [f"name=rare-{seed}", f"seed={seed}", f"train.max_steps={arguments.steps}"]
            run = folder / f"{seed}-{len(overrides)}"
            resolved = load_experiment(file, [*overrides, *own, "data.augmentation.name=ssd"])
            plan, _ = train(resolved, run)
            scores = (run / PER_CLASS).read_text().splitlines()
            ap = {line.split(",")[0]: line.split(",")[4:6] for line in scores[1:]}
            steps_per_epoch = plan.job.schedule.steps_per_epoch
            print(f"seed {seed}, {name}: {steps_per_epoch} steps an epoch, {ap}", flush=True)


if __name__ == "__main__":
    main()
