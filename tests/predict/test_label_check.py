"""``orchestrator check --with``: lists that lead back to the annotations, and a page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from orchestrator.cli.main import main
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import ConfigError
from orchestrator.evaluation.label_errors import Suspect
from orchestrator.predict.label_check import Listed, annotation_ids, write_suspects
from tests.support.small_run import make_data


def test_check_with_a_run(small_run: Path, tmp_path: Path, capsys) -> None:
    experiment = small_run / "config" / "resolved.yaml"
    words = ["check", str(experiment), "--with", str(small_run), "--suspects", str(tmp_path)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "contradicts:" in said
    tree = json.loads((tmp_path / "suspects.json").read_text())
    assert tree["suspects"]
    beliefs = [one["suspicion"] for one in tree["suspects"]]
    assert beliefs == sorted(beliefs, reverse=True)
    truth = {}
    for split in ("train", "val"):
        path = small_run.parent / "squares" / "annotations" / f"instances_{split}.json"
        known = {one["id"]: one for one in json.loads(path.read_text())["annotations"]}
        truth[split] = known
    for one in tree["suspects"]:
        if one["kind"] == "missed":
            assert one["annotation_id"] is None
            continue
        annotated = truth[one["split"]][one["annotation_id"]]
        assert annotated["image_id"] == one["image_id"]
        assert annotated["bbox"] == one["bbox"]
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open()))
    assert [row["kind"] for row in rows] == [one["kind"] for one in tree["suspects"]]
    page = (tmp_path / "suspects.html").read_text()
    assert page.count("data:image/jpeg;base64") == min(len(rows), 60)
    assert "<script" not in page


def test_suspects_need_a_detector(tmp_path: Path) -> None:
    assert main(["check", "x.yaml", "--suspects", str(tmp_path)]) == ConfigError.exit_code


def test_names_are_shown_and_never_computed(tmp_path: Path) -> None:
    make_data(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "instances_val.json"
    tree = json.loads(path.read_text())
    tree["categories"][0]["name"] = "=1+1"
    tree["categories"][1]["name"] = "<b>[red]"
    path.write_text(json.dumps(tree))
    data = read_coco(tmp_path / "set" / "images", path).dataset
    ids = annotation_ids(data, path)
    assert sorted(ids) == list(range(7))
    listed = [
        Listed(
            Suspect("wrong_class", 0.9, 0, 0, 0, (5, 5, 20, 20), 1, (5, 5, 21, 21), 0.8),
            "val",
            data,
            ids[0],
        ),
        Listed(
            Suspect("missed", 0.5, 1, None, 0, (1, 1, 4, 9), 0, (1, 1, 4, 9), 0.7),
            "val",
            data,
            None,
        ),
    ]
    files = write_suspects(tmp_path / "out", "a <i>detector</i>", listed)
    assert "'=1+1" in files["csv"].read_text()
    page = files["html"].read_text()
    assert "<b>" not in page
    # Both classes and both kinds of line stand in the legend.
    assert page.count('class="swatch"') == 2
    assert page.count('class="line ') == 2
    assert "<i>detector" not in page
    assert np.isclose(json.loads(files["json"].read_text())["suspects"][1]["suspicion"], 0.5)
