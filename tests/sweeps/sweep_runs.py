"""Sweeps that are run by the user's command, and what they leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EXPERIMENT = """
name: whole
seed: 7
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: squares
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
  augmentation: {name: none}
train:
  epochs: %d
  batch_size: 4
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: %s}
  log_every_steps: 1
tracking: {mlflow: %s, experiment: tests}
sweep:
"""


def write_experiment(
    folder: Path, section: str, *, epochs: int, schedule: str = "cosine", mlflow: str = "null"
) -> None:
    """``sweep.yaml``, with ``section``, lines without indentation, as its sweep."""
    lines = "".join(f"  {line}\n" for line in section.strip().splitlines())
    (folder / "sweep.yaml").write_text(EXPERIMENT % (epochs, schedule, mlflow) + lines)


def summary(folder: Path, name: str) -> dict[str, Any]:
    """``sweep.json`` of the sweep of this name."""
    tree: dict[str, Any] = json.loads((folder / "runs" / name / "sweep.json").read_text())
    return tree


def journal(folder: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """Entries of one kind in the journal of the sweep of this name."""
    lines = (folder / "runs" / name / "sweep.jsonl").read_text().splitlines()
    return [entry for line in lines if (entry := json.loads(line))["kind"] == kind]


def progress(folder: Path, name: str) -> int:
    """Lines that a sweep has written so far into its journal and the logs of its trials."""
    sweep = folder / "runs" / name
    files = [sweep / "sweep.jsonl", *sweep.glob("trial-*/events.jsonl")]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())
