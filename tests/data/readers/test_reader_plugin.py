"""A reader of an installed package: named in an experiment, checked, trained from."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.support.plugin_runs import ROOT, run_with

PLUGIN = Path(__file__).with_name("plugin")
EXPERIMENT = """\
extends: {root}/experiments/quickstart.yaml
name: csv
data:
  format: {format}
  root: {data}
  train: {{images: images, annotations: train.csv}}
  val: {{images: images, annotations: val.csv}}
train: {{max_steps: 1, batch_size: 2, log_every_steps: 1}}
detector: {{width: 0.1}}
tracking: {{mlflow: null}}
"""
TRAIN = """\
import sys
from pathlib import Path
from orchestrator.accelerators import Accelerator
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import make_plan
from orchestrator.training.session import run_rank
plan = make_plan(load_experiment(sys.argv[1]), Path(sys.argv[1]).parent / "run", threads=1)
run_rank(plan.job, LocalStream(plan.batches), accelerator=Accelerator("cpu"))
train = plan.batches.train
assert main(["convert", "data", sys.argv[1], sys.argv[2], "--to", "coco"]) == 0
print(list(train.label_map.names), train.boxes_xywh.tolist(), train.labels.tolist())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of 64 x 48 with a box each, in two classes."""
    import cv2
    import numpy as np

    (tmp_path / "images").mkdir()
    rows = []
    for number in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((48, 64, 3), 90, np.uint8))
        rows.append([f"{number}.png", ("cat", "dog")[number % 2], 4, 6, 24 + number, 30])
    for split in ("train", "val"):
        with (tmp_path / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["image", "class", "x1", "y1", "x2", "y2"], *rows])
    return tmp_path


def test_an_experiment_is_trained_from_it(folder: Path) -> None:
    file = folder / "e.yaml"
    file.write_text(EXPERIMENT.format(root=ROOT, data=folder, format="csv"))
    done = run_with(PLUGIN, "-c", TRAIN, str(file), str(folder / "coco"))
    assert done.returncode == 0, done.stderr
    boxes = [[4.0, 6.0, 20.0 + number, 24.0] for number in range(4)]
    assert done.stdout.splitlines()[-1] == f"['cat', 'dog'] {boxes} {[0, 1, 0, 1]}"
    converted = json.loads((folder / "coco/annotations/instances_val.json").read_text())
    assert [one["bbox"] for one in converted["annotations"]] == boxes
    report = folder / "report.json"
    checked = run_with(
        PLUGIN, "-m", "orchestrator.cli.main", "check", str(file), "--json", str(report)
    )
    assert checked.returncode == 0, checked.stderr
    assert json.loads(report.read_text())


def test_its_mistakes_are_its_own(folder: Path) -> None:
    file = folder / "e.yaml"
    file.write_text(EXPERIMENT.format(root=ROOT, data=folder, format="csv"))
    (folder / "train.csv").write_text("image,class\n0.png,cat\n")
    checked = run_with(PLUGIN, "-m", "orchestrator.cli.main", "check", str(file))
    assert checked.returncode == 65
    assert "entry point 'csv = csv_boxes:read_csv' of csv_boxes 1.0" in checked.stdout
    assert "Traceback" not in checked.stderr


def test_without_the_package_its_format_is_unknown(folder: Path) -> None:
    file = folder / "e.yaml"
    file.write_text(EXPERIMENT.format(root=ROOT, data=folder, format="csv"))
    shown = run_with(None, "-m", "orchestrator.cli.main", "config", "show", str(file))
    assert shown.returncode == 64
    assert "data.format: found 'csv', allowed is 'coco', 'voc', 'txt' or 'yolo'" in shown.stderr
