"""A small experiment with a sweep section, and what the tests of several files make of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.resolve import read_template
from orchestrator.sweeps.plan import Planner

EXPERIMENT = """
name: swept
seed: 11
detector: {name: ssd, variant: ssd300_mobilenet_v2, width: 0.1, bn_momentum: 0.1}
data:
  root: squares
  train: {images: images, annotations: annotations/instances_train.json}
  val: {images: images, annotations: annotations/instances_val.json}
  augmentation: {name: none}
train:
  epochs: 9
  batch_size: 4
  optimizer: {name: sgd, lr: 0.01}
  schedule: {name: cosine, warmup_epochs: 1}
tracking: {mlflow: null}
sweep:
"""


def planner(folder: Path, section: str, overrides: Sequence[str] = ()) -> Planner:
    """A planner of the experiment with ``section``, lines without indentation, as its sweep."""
    file = folder / "swept.yaml"
    lines = "".join(f"  {line}\n" for line in section.strip().splitlines())
    file.write_text(EXPERIMENT + lines)
    template = read_template(file, overrides)
    return Planner(template, folder / "runs" / "swept", template.resolve())
