"""Objects of 12 pixels on images of 2,000: AP with tiles and without, in the same training time.

    python benchmarks/study_tiles.py FOLDER [--seconds 120]

Discs and squares lie on textured noise. Both arms train the same network from the same seed on one
thread. Their rates are measured on a few steps first, and each then takes as many steps as fill the
time; evaluation comes on top.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from small_runs import EXPERIMENT, Object, train, write_split

from orchestrator.accelerators import Accelerator
from orchestrator.benchmark.training import Trainer
from orchestrator.config.resolve import ResolvedExperiment, load_experiment

SIDE, OBJECT = 2000, 12
BOTH = (
    "name=tiles",
    "detector.width=0.35",
    "detector.postprocess.max_per_image=300",
    "data.augmentation.name=none",
)
TILES = ["data.tiles.size=[160, 160]", "data.tiles.overlap=24", "data.keep_decoded=2"]


def pictures(count: int, objects: int, seed: int) -> Iterator[tuple[np.ndarray, list[Object]]]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        noise = rng.integers(60, 190, (SIDE // 4, SIDE // 4, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        taken = np.zeros((SIDE, SIDE), bool)
        placed = []
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
            placed.append((square, x, y, OBJECT, OBJECT))
        yield picture, placed


def experiment(folder: Path, *overrides: str) -> ResolvedExperiment:
    file = folder / "tiles.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(folder)))
    return load_experiment(file, [*BOTH, *overrides, f"data.cache={folder / 'cache'}"])


def rate(folder: Path, *overrides: str) -> float:
    """Steps a second, training alone, of the batches after the first three."""
    trainer = Trainer(experiment(folder, *overrides), Accelerator("cpu"))
    return 12 / sum(trainer.steps(15)[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=120)
    arguments = parser.parse_args()
    folder = arguments.folder
    for split, count, seed in (("train", 16, 1), ("val", 2, 2)):
        write_split(folder, split, pictures(count, 120, seed), ("disc", "square"), ".jpg")
    for name, overrides in (("tiles", TILES), ("whole", [])):
        speed = rate(folder, *overrides)
        steps = max(1, round(speed * arguments.seconds))
        started = time.perf_counter()
        resolved = experiment(folder, *overrides, f"train.max_steps={steps}")
        _, outcome = train(resolved, folder / name)
        seconds, metrics = time.perf_counter() - started, outcome.metrics or {}
        numbers = {key: round(value, 4) for key, value in metrics.items() if "AP" in key}
        print(
            f"{name}: {steps} steps of 8 at {8 * speed:.1f} images/s, {seconds:.0f} s with "
            f"evaluation: {numbers}",
            flush=True,
        )


if __name__ == "__main__":
    main()
