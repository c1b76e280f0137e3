"""Small data sets and plans that the tests of this room share."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from orchestrator.data.augment.ssd import SSDAugment
from orchestrator.data.batch import Batch
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.stream.assemble import BatchPlan, View
from orchestrator.data.stream.schedule import Schedule

#: A COCO tree with one image, one box and category ids that are not contiguous.
TREE: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.jpg", "width": 40, "height": 30}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0}
    ],
    "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
}


def textured(height: int, width: int, seed: int) -> np.ndarray:
    """A smooth colour image that no two seeds share."""
    rng = np.random.Generator(np.random.PCG64(seed))
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height))


def write_image(path: Path, image: np.ndarray) -> None:
    """An RGB image as a file of the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))


def write_coco(folder: Path, count: int, *, boxes: int = 3, seed: int = 0) -> None:
    """``count`` JPEGs of differing sizes with random boxes, in COCO layout."""
    rng = np.random.Generator(np.random.PCG64(seed))
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(count):
        height, width = int(rng.integers(40, 70)), int(rng.integers(50, 90))
        name = f"{index:03d}.jpg"
        cv2.imwrite(str(folder / "images" / name), textured(height, width, seed * 1000 + index))
        images.append({"id": 100 + index, "file_name": name, "width": width, "height": height})
        for _ in range(boxes):
            x, y = rng.uniform(0, width - 20), rng.uniform(0, height - 20)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + index,
                    "category_id": int(rng.integers(1, 3)),
                    "bbox": [x, y, rng.uniform(8, 20), rng.uniform(8, 20)],
                    "area": 100.0,
                    "iscrowd": 0,
                }
            )
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    }
    (folder / "instances.json").write_text(json.dumps(tree))


def make_plan(folder: Path, *, batch_size: int = 4, epochs: int = 3, seed: int = 1) -> BatchPlan:
    """A plan over the folder that :func:`write_coco` wrote, for 48x64 network inputs."""
    dataset = read_coco(folder / "images", folder / "instances.json").dataset
    size = (48, 64)
    return BatchPlan(
        train=dataset,
        val=dataset,
        schedule=Schedule(
            seed=seed,
            sample_ids=np.arange(len(dataset)),
            batch_size=batch_size,
            epochs=epochs,
        ),
        augment=SSDAugment(size=size),
        input_size=size,
        box_slots=3,
        with_crowd=False,
        eval_batch=2,
    )


def with_two_canvases(plan: BatchPlan, size: tuple[int, int] = (48, 64)) -> BatchPlan:
    """The plan with a canvas for images that are wider than high, and one turned for the others."""
    data = plan.train
    higher = (data.heights >= data.widths)[plan.schedule.sample_ids]
    return replace(
        plan,
        schedule=replace(plan.schedule, canvases=higher.astype(np.int8)),
        canvases=tuple(View(one, SSDAugment(size=one)) for one in (size, size[::-1])),
    )


def assert_same_batch(first: Batch, second: Batch) -> None:
    """Every field equal, arrays to the byte, type and shape."""
    for field in fields(Batch):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, np.ndarray):
            assert one.dtype == other.dtype, field.name
            assert np.array_equal(one, other), field.name
        else:
            assert one == other, field.name
