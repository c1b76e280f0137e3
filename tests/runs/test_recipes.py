"""Every published recipe takes two training steps at its full size, on generated images."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.accelerators import Accelerator
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.tracking.events import metric_history
from orchestrator.training.session import run_rank

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
RECIPES = [
    path
    for path in sorted(EXPERIMENTS.glob("*.yaml"))
    if load_experiment(path).experiment.cluster.workers > 1
]
CLASSES = 80


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of noise with eighty rectangles, one of each class."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for image in range(4):
        pixels = rng.integers(0, 256, (480, 640, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / f"{image}.jpg"), pixels)
        images.append({"id": image, "file_name": f"{image}.jpg", "height": 480, "width": 640})
        for label in range(image, CLASSES, 4):
            x, y, w, h = (int(v) for v in rng.integers((0, 0, 20, 20), (300, 200, 340, 280)))
            box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
            ids = {"id": label + 1, "image_id": image, "category_id": label + 1}
            annotations.append({**box, **ids})
    categories = [{"id": label + 1, "name": f"class {label + 1}"} for label in range(CLASSES)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "all.json").write_text(json.dumps(tree))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_two_steps_at_full_size(recipe: Path, data: Path, tmp_path: Path) -> None:
    overrides = {
        "data.root": data,
        "data.train.images": ".",
        "data.train.annotations": "all.json",
        "data.val.images": ".",
        "data.val.annotations": "all.json",
        "cluster.workers": 1,
        "cluster.accelerator": "cpu",
        "train.precision": "fp32",  # Half precision and its loss scale need a GPU or an NPU.
        "train.loss_scale": "dynamic",
        # SpineNet-143 takes 10 GB an image at 1,280 pixels. The last map of SSD300 has one cell,
        # and batch normalisation needs two values.
        "train.batch_size": 2 if recipe.stem.startswith("ssd300") else 1,
        "train.max_steps": 2,
        "train.log_every_steps": 1,
        "train.evaluate_every_epochs": 10_000,
        "tracking.mlflow": "null",
    }
    if load_experiment(recipe).experiment.train.schedule.warmup_steps:
        # So small a set has fewer steps in all than the warm-up of some recipes.
        overrides["train.schedule.warmup_steps"] = 1
    words = [f"{key}={value}" for key, value in overrides.items()]
    # A process of its own gives back the 20 GB that it holds, which tests beside this one need.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        steps, losses = pool.submit(train_two_steps, recipe, words, tmp_path).result()
    assert steps == 2
    assert losses
    assert all(np.isfinite(losses))


def train_two_steps(recipe: Path, words: list[str], folder: Path) -> tuple[int, list[float]]:
    """Steps done, and what the losses were."""
    plan = make_plan(load_experiment(recipe, words), folder, threads=1)
    outcome = run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
    points = metric_history(folder / "events.jsonl", "train/loss")
    return outcome.steps, [point.value for point in points]
