"""``--json``: one object on standard output, and nothing else there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.cli._shared.json_output import json_output
from orchestrator.cli._shared.parser import options_of
from orchestrator.cli.main import VERBS, main

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
#: Verbs that write files for people, answer in another way, or choose among verbs of their own.
WITHOUT = {"init", "predict", "serve", "draw", "replay", "config", "completion", "convert"}


def test_every_verb_takes_it_but_those_the_page_names():
    lacking = {name for name, verb in VERBS.items() if "--json" not in options_of(verb.main)}
    assert lacking <= WITHOUT
    rows = re.findall(r"^\| `([a-z-]+)` \| ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == list(VERBS)


def write_annotations(folder: Path) -> tuple[Path, Path]:
    """Two images with a box each, the first of them found."""
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 100, "height": 80} for k in (1, 2)]
    boxes = [
        {"id": k, "image_id": k, "category_id": 1, "bbox": [10, 10, 40, 30], "area": 1200}
        for k in (1, 2)
    ]
    tree = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    truth, results = folder / "truth.json", folder / "results.json"
    truth.write_text(json.dumps(tree))
    results.write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 30], "score": 0.9}])
    )
    return truth, results


def test_evaluate_prints_its_numbers_and_nothing_else(tmp_path, capsys):
    truth, results = write_annotations(tmp_path)
    words = ["--annotations", str(truth), "--predictions", str(results)]
    assert main(["evaluate", *words, "--output", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    tree = json.loads(printed.out)
    # One of two boxes is found: precision 1 up to recall 0.5, at 51 of the 101 recalls.
    assert tree["metrics"]["AP"] == pytest.approx(51 / 101)
    assert Path(tree["files"]["analysis"]).is_file()
    assert "AP" in printed.err


def test_long_names_of_classes_stay_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    truth, results = write_annotations(tmp_path)
    tree = json.loads(truth.read_text())
    names = [f"traffic_sign_with_a_plate_below_it_{side}" for side in ("left", "right")]
    tree["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    truth.write_text(json.dumps(tree))
    words = ["--annotations", str(truth), "--predictions", str(results)]
    assert main(["evaluate", *words, "--output", str(tmp_path / "out")]) == 0
    table = capsys.readouterr().out.partition(" class ")[2].partition(" error ")[0]
    column = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    assert "".join(column) == "".join(names)


def test_list_and_status_name_what_is_there(tmp_path, capsys):
    assert main(["list", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}
    assert main(["status", str(tmp_path / "none"), "--json"]) == 71
    assert capsys.readouterr().out == ""


def test_a_failure_prints_no_object(capsys):
    def fail():
        with json_output(wanted=True) as emit:
            emit({"half": True})
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().out == ""
