"""Priors that a data set suggests: ratios by hand, and recall that rises."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from orchestrator.cli.main import main
from orchestrator.data.doctor.suggest import Suggestion, ratio_clusters, suggest_priors
from orchestrator.data.readers.coco import read_coco
from tests.support.data_cases import write_coco


def test_clusters_of_ratios_by_hand() -> None:
    logs = np.log(np.repeat([0.25, 1.0, 4.0], 20))
    assert ratio_clusters(logs, 3) == [0.25, 1.0, 4.0]
    assert ratio_clusters(logs, 1) == [1.0]
    assert ratio_clusters(np.log(np.full(5, 2.0)), 3) == [2.0]
    # Half of them at 1 and half at 3: for one centre any ratio between is as good at the ends.
    assert ratio_clusters(np.log(np.repeat([1.0, 3.0], 50)), 2) == [1.0, 3.0]


def test_lines_are_yaml() -> None:
    changes = {"anchors.base": 2.0, "anchors.ratios": [0.5, 1.25], "priors": "voc"}
    text = Suggestion(changes, {}, {}, 3).to_yaml()
    assert yaml.safe_load(text) == {
        "detector": {"anchors": {"base": 2.0, "ratios": [0.5, 1.25]}, "priors": "voc"}
    }


@pytest.mark.parametrize(
    ("crowds", "measured"), [((), ["train", "val"]), (("val",), ["train"]), (("train",), None)]
)
def test_splits_of_crowds_alone_are_left_out(
    crowds: tuple[str, ...], measured: list[str] | None, tmp_path: Path
) -> None:
    write_coco(tmp_path, 4)
    data = read_coco(tmp_path / "images", tmp_path / "instances.json").dataset
    splits = {
        name: replace(data, crowd=np.full_like(data.crowd, name in crowds))
        for name in ("train", "val")
    }
    prior = np.array([[0, 0, 20, 20]], np.float32)
    found = suggest_priors(
        splits, lambda _: prior, lambda _: {"ratios": [1]}, lambda *_: (1.0, 1.0, 0.0, 0.0)
    )
    assert (None if found is None else list(found.before)) == measured


EXPERIMENT = """
name: tall
detector: {name: retinanet, variant: retinanet_spinenet49s, input_size: [256, 256], width: 0.25}
data:
  root: %s
  train: {images: ., annotations: train.json}
  val: {images: ., annotations: train.json}
train: {epochs: 1, batch_size: 2, optimizer: {name: sgd, lr: 0.01}}
tracking: {mlflow: null}
"""


def test_what_is_not_done_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 90, np.uint8))
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64}
    tree = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "pole"}]}
    (tmp_path / "train.json").write_text(json.dumps(tree))
    file = tmp_path / "empty.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(tmp_path)))
    sheet = tmp_path / "sheet.jpg"
    assert main(["check", str(file), "--suggest-priors", "--show-augmented", str(sheet)]) == 65
    said = capsys.readouterr().err
    assert "not done, since no run starts on this data: --show-augmented, --suggest-priors" in said
    assert not sheet.exists()


def test_tall_boxes_get_tall_priors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(12):
        name = f"{number}.png"
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (256, 256, 3)).astype(np.uint8))
        images.append({"id": number, "file_name": name, "width": 256, "height": 256})
        for _ in range(5):
            w = float(rng.uniform(18, 24))
            x, y = rng.uniform(0, 256 - w), rng.uniform(0, 256 - 5 * w)
            one = {"id": len(annotations), "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(one | {"bbox": [x, y, w, 5 * w], "area": 5 * w * w})
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "pole"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(tree))
    file = tmp_path / "tall.yaml"
    file.write_text(EXPERIMENT % json.dumps(str(tmp_path)))
    assert main(["check", str(file), "--suggest-priors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line == "detector:")
    end = next(i for i, line in enumerate(lines) if line.startswith("Weights trained"))
    changes = yaml.safe_load("\n".join(lines[start:end]))["detector"]
    assert all(4.5 < ratio < 5.5 for ratio in changes["anchors"]["ratios"])
    said = next(line for line in lines if "boxes of train" in line)
    before, after = (float(part.split()[-1]) for part in said.split(",")[0].split(" -> "))
    assert before < 0.3
    assert after > 0.7
    # With the lines in the file the doctor finds the same recall.
    text = file.read_text().replace(
        "width: 0.25}", f"width: 0.25, anchors: {json.dumps(changes['anchors'])}}}"
    )
    file.write_text(text)
    assert main(["check", str(file), "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    recall = report["splits"]["train"]["prior_recall"]["all"]["recall"]
    assert recall == pytest.approx(after, abs=6e-4)
