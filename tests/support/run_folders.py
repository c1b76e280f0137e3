"""Run folders as training leaves them, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import load_experiment
from orchestrator.data.dataset import Dataset
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results, write_results
from orchestrator.runs.digests import config_digest
from orchestrator.runs.identity import Identity, open_run
from orchestrator.tracking.events import EventLog

EXPERIMENT = """
name: {name}
seed: {seed}
detector: {{name: ssd, variant: ssd300_mobilenet_v2}}
data:
  root: {root}
  train: {{images: images, annotations: val.json}}
  val: {{images: images, annotations: val.json}}
train:
  epochs: 3
  batch_size: 10
  optimizer: {{name: adamw, lr: 0.001}}
  schedule: {{name: constant}}
tracking: {{mlflow: null}}
storage: {storage}
"""


def write_data(root: Path, dataset: Dataset) -> None:
    """A data set as a COCO file, with images that are empty files."""
    (root / "images").mkdir(parents=True)
    images = []
    annotations = []
    for i, name in enumerate(dataset.files):
        (root / "images" / name).touch()
        image = int(dataset.image_ids[i])
        images.append({"id": image, "file_name": name, "width": 640, "height": 480})
        rows = dataset.boxes_of(i)
        for row in range(rows.start, rows.stop):
            annotations.append(
                {
                    "id": row + 1,
                    "image_id": image,
                    "category_id": dataset.label_map.ids[dataset.labels[row]],
                    "bbox": dataset.boxes_xywh[row].tolist(),
                    "area": float(dataset.areas[row]),
                    "iscrowd": 0,
                }
            )
    names = zip(dataset.label_map.ids, dataset.label_map.names, strict=True)
    categories = [{"id": number, "name": name} for number, name in names]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (root / "val.json").write_text(json.dumps(tree))


def write_run(
    storage: Path,
    name: str,
    dataset: Dataset,
    found: Detections | None,
    *overrides: str,
    seed: int = 1,
    weights: str | None = None,
) -> Path:
    """A run whose last evaluation gave ``found``; None for one that was never evaluated.

    The data set lies in ``storage``/../data.
    """
    run = storage / name
    run.mkdir(parents=True)
    file = storage.parent / f"{name}.yaml"
    root = storage.parent / "data"
    file.write_text(EXPERIMENT.format(name=name, seed=seed, root=root, storage=storage))
    resolved = load_experiment(file, overrides)
    (run / "config").mkdir()
    (run / "config" / "resolved.yaml").write_text(dump_yaml(resolved))
    (run / "label_map.json").write_text(dataset.label_map.to_json())
    identity = Identity(config_digest(resolved.tree), dataset.digest, sources={"a.py": "0" * 16})
    open_run(run, identity, resolved.tree)
    log = EventLog(run / "events.jsonl")
    for step in range(1, 16):
        log.metrics({"train/loss": 10.0 / step, "train/epoch": step / 5}, step=step)
    if found is not None:
        scores = evaluate(dataset, found)
        values = {f"val/{key}": value for key, value in scores.numbers.items()}
        values |= {f"val/AP/{key}": value for key, value in scores.per_class.items()}
        log.metrics({key: value * 0.9 for key, value in values.items()}, step=10)
        log.metrics(values, step=15)
        write_results(run / "eval" / "coco_results.json", Results.of(found), dataset.label_map)
        result = {
            "name": name,
            "state": "done",
            "steps": 15,
            "metrics": scores.numbers,
            "weights_sha256": weights or name,
            "data_digest": dataset.digest,
        }
        (run / "result.json").write_text(json.dumps(result))
    log.close()
    return run


def rng(*key: int) -> np.random.Generator:
    """A generator of its own for every key."""
    return np.random.default_rng(list(key))
