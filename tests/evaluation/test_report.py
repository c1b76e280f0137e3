"""The report of a run: one page that needs nothing else, with the numbers of the evaluation."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from coco_cases import dataset_of, random_case

from orchestrator.cli.main import main
from orchestrator.errors import DataError, StorageError
from orchestrator.evaluation import report
from orchestrator.evaluation.analysis import analyse
from orchestrator.evaluation.report import render_report
from orchestrator.evaluation.results import Results, read_results, write_results
from orchestrator.pages import charts
from orchestrator.predict.loading import load_detector
from orchestrator.predict.scoring import read_split
from orchestrator.runs.report import write_page
from orchestrator.storage.run_files import REPORT

_VOID = {"meta", "img", "input"}


class Page(HTMLParser):
    """Text, pictures and tables of a page; fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: dict[str, str] = {}
        self.links: list[str] = []
        self.headings: list[str] = []
        self.anchors: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[key] for key in ("src", "href") if key in found]
        if "id" in found:
            self.anchors.append(found["id"])
        if tag == "img":
            self.pictures[found["alt"]] = found["src"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


@pytest.fixture(scope="module")
def dataset(small_run):
    return read_split(load_detector(small_run).resolved.experiment, "val")


@pytest.fixture(scope="module")
def page(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    assert main(["report", str(small_run), "--output", str(path)]) == 0
    return Page(path.read_text("utf-8"))


def test_the_page_needs_nothing_else(page):
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert {link for link in page.links if link[0] == "#"} <= {f"#{name}" for name in page.anchors}
    assert page.headings == [
        "tiny", "COCO numbers", "Training", "Classes", "Precision and recall", "Errors",
        "Confusion", "Images with most errors", "Run", "Experiment",
    ]  # fmt: skip


def test_the_page_has_the_numbers_of_the_evaluation(page, small_run, dataset):
    results = read_results(small_run / "eval" / "coco_results.json", dataset)
    tree = analyse(dataset, results).to_json()
    for name, value in tree["metrics"].items():
        assert [name, "-" if value < 0 else f"{value:.4f}"] in page.rows
    for one in tree["classes"]:
        row = next(row for row in page.rows if row[:2] == [one["name"], str(one["boxes"])])
        assert row[3] == f"{one['ap']:.4f}"
    for name, counts in zip(
        ("dark", "bright", "background"), tree["confusion"]["counts"], strict=True
    ):
        assert [name, *map(str, counts)] in page.rows
    for kind, count in tree["errors"]["counts"].items():
        assert any(row[:2] == [kind, str(count)] for row in page.rows)
    worst = [caption for caption in page.pictures if caption.endswith("false positives")]
    assert len(worst) == len(tree["worst_images"])
    for one in tree["at_working_score"]:
        rates = (f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))
        counts = (str(one[key]) for key in ("true_positives", "false_positives", "missed"))
        assert [one["name"], *counts, *("-" if r == "-1.000" else r for r in rates)] in page.rows


def test_charts_and_pictures_can_be_decoded(page):
    kinds = set()
    for caption, uri in page.pictures.items():
        head, data = uri.split(",", 1)
        content = base64.b64decode(data, validate=True)
        kinds.add(head)
        if "svg" in head:
            assert ElementTree.fromstring(content).tag.endswith("svg"), caption
        else:
            assert content.startswith(b"\xff\xd8"), caption
    assert kinds == {"data:image/svg+xml;base64", "data:image/jpeg;base64"}


def test_equal_runs_give_equal_pages(small_run, dataset):
    assert render_report(small_run, dataset) == render_report(small_run, dataset)


@pytest.mark.parametrize("name", ["<script>x</script>", "a$b$c_{", "赤血球", "_hidden"])
def test_a_class_name_is_only_a_name(name, recwarn):
    uri = charts.bars({name: 0.5, "other": -1.0}, x_label="AP")
    tree = ElementTree.fromstring(base64.b64decode(uri.split(",", 1)[1]))
    texts = ["".join(node.itertext()).strip() for node in tree.iter() if node.tag.endswith("text")]
    assert name in texts
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


def drawn_lines(uri):
    """Colours of the curves of a chart, by their names in the legend."""
    tree = ElementTree.fromstring(base64.b64decode(uri.split(",", 1)[1]))
    text = ElementTree.tostring(tree, "unicode")
    return tree, re.findall(r"stroke: (#[0-9a-f]{6}); stroke-width: 1.5", text)


def test_a_colour_belongs_to_its_name_in_every_chart():
    colour = charts.colours(["base", "small"])
    assert len(set(colour.values())) == 2
    both = {"base": [(1, 2.0), (2, 1.0)], "small": [(1, 3.0), (2, 2.0)]}
    _, used = drawn_lines(charts.lines(both, y_label="loss", colour=colour))
    assert used == [colour["base"], colour["small"]] * 2  # Curves, then legend.
    tree, used = drawn_lines(charts.lines({"small": both["small"]}, y_label="AP", colour=colour))
    assert used == [colour["small"]] * 2
    assert "small" in ["".join(node.itertext()).strip() for node in tree.iter()]


def test_a_cliff_gets_a_logarithmic_scale():
    cliff = [(0, 40.0), *((step, 1.0 + 1 / step) for step in range(1, 30))]
    gentle = [(step, 2.0 - step / 40) for step in range(30)]

    def ticks(points):
        tree, _ = drawn_lines(charts.lines({"loss": points}, y_label="loss"))
        return {"".join(node.itertext()).strip() for node in tree.iter() if node.tag[-4:] == "text"}

    assert {"1", "2", "5", "10", "20"} <= ticks(cliff)
    assert {"1.3", "1.5", "1.7"} <= ticks(gentle)
    # What is not positive has no logarithm.
    negative = [(0, 40.0), *((step, -0.1) for step in range(1, 30))]
    assert {"0", "10", "20", "30", "40"} <= ticks(negative)


def test_class_names_cannot_become_markup(tmp_path):
    tree, found = random_case(11, ties=False)
    data = dataset_of(tree)
    names = tuple(f"<b onclick=x>{name}" for name in data.label_map.names)
    data = dataclasses.replace(data, label_map=dataclasses.replace(data.label_map, names=names))
    write_results(tmp_path / "eval" / "coco_results.json", Results.of(found), data.label_map)
    text = render_report(tmp_path, data)
    assert "<b " not in text
    page = Page(text)
    assert any(row[0] == names[0] for row in page.rows)
    # Neither card, log nor images are there: the numbers are all the same.
    assert "Training" not in page.headings
    assert "AP50" in {row[0] for row in page.rows}


def test_scores_in_per_cent_have_no_calibration(copy, dataset):
    file = copy / "eval" / "coco_results.json"
    assert "calibration at IoU" in render_report(copy, dataset)
    results = json.loads(file.read_text())
    file.write_text(json.dumps([{**one, "score": 100 * one["score"]} for one in results]))
    text = render_report(copy, dataset)
    assert "calibration at IoU" not in text
    assert "divide them by 100" in text


def test_of_many_false_positives_the_best_are_drawn(copy, small_run, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw", lambda image, marks: drawn.append(marks) or image)
    dataset = read_split(load_detector(small_run).resolved.experiment, "val")
    row = int(dataset.offsets[0])
    place, label = dataset.boxes_xywh[row], int(dataset.labels[row])
    # Forty wrong detections with higher scores than the right one, all on the first image.
    wrong = [((1 + k % 8, 1 + k // 8, 3, 3), 0.5 + k / 100) for k in range(40)]
    boxes, scores = zip(*wrong, (tuple(place), 0.3), strict=True)
    count = len(scores)
    results = Results(
        dataset.image_ids,
        np.repeat(dataset.image_ids[:1], count),
        np.repeat(np.int64(label), count),
        np.array(boxes, np.float64),
        np.array(scores),
    )
    write_results(copy / "eval" / "coco_results.json", results, dataset.label_map)
    text = render_report(copy, dataset)
    assert "40 false positives" in text
    assert "the 30 best are drawn" in text
    first = max(drawn, key=len)
    kinds = [mark.kind for mark in first]
    assert kinds == ["false positive"] * 30 + ["detection", "annotation"]
    assert min(float(mark.text[-4:]) for mark in first[:30]) == 0.6


def test_bars_of_nearly_nothing_are_short():
    tree = ElementTree.fromstring(
        base64.b64decode(charts.bars({"a": 1e-5}, x_label="AP").split(",", 1)[1])
    )
    texts = {"".join(node.itertext()).strip() for node in tree.iter() if node.tag[-4:] == "text"}
    assert {"0.00", "0.05"} <= texts


def test_a_run_without_results_is_refused(tmp_path, dataset):
    with pytest.raises(DataError, match="nothing to report"):
        render_report(tmp_path, dataset)


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == StorageError.exit_code
    assert "is no run folder" in capsys.readouterr().err


@pytest.fixture
def copy(small_run, tmp_path):
    run = tmp_path / "run"
    for name in ("config", "eval"):
        shutil.copytree(small_run / name, run / name)
    return run


def exchanged_names(tree):
    first, second = tree["categories"]
    first["name"], second["name"] = second["name"], first["name"]


def exchanged_ids(tree):
    for one in tree["annotations"]:
        one["category_id"] = {3: 70, 70: 3}[one["category_id"]]


def fewer_boxes(tree):
    del tree["annotations"][4:]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (exchanged_names, ("label maps differ", "3:dark", "3:bright", "label_map.json")),
        (exchanged_ids, ("the stored detections of run score AP", "data.root=FOLDER")),
        (fewer_boxes, ("the stored detections of run score AP", "data.root=FOLDER")),
    ],
)
def test_data_that_is_no_longer_that_of_the_run_is_refused(
    copy, small_run, tmp_path, capsys, change, words
):
    for name in ("label_map.json", "events.jsonl"):
        shutil.copy(small_run / name, copy)
    data = tmp_path / "data"
    shutil.copytree(load_detector(small_run).resolved.experiment.data.root, data)
    command = ["report", str(copy), f"data.root={data}"]
    assert main(command) == 0
    (copy / REPORT).unlink()
    file = data / "annotations" / "instances_val.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))
    assert main(command) == DataError.exit_code
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert not (copy / REPORT).exists()


def test_the_end_of_a_run_writes_the_page(copy):
    assert write_page(copy) is None
    assert re.search(r"<h1>run</h1>", (copy / REPORT).read_text("utf-8"))


def test_a_page_that_fails_is_told_and_leaves_no_old_one(copy, monkeypatch):
    (copy / REPORT).write_text("of an earlier end")
    (copy / "eval" / "coco_results.json").write_text("[{")
    assert "coco_results.json" in str(write_page(copy))
    assert not (copy / REPORT).exists()
    assert write_page(copy, timeout=0.01) == "took longer than 0.01 s"
    monkeypatch.setattr(sys, "executable", str(copy / "no-python"))
    assert "No such file" in str(write_page(copy))


def test_images_with_errors_are_shown_and_if_they_cannot_be_read_named(copy, tmp_path, small_run):
    root = Path(load_detector(small_run).resolved.experiment.data.root)
    shutil.copytree(root, tmp_path / "data")
    # Nothing is found, so that every image has an error, whatever the run has learnt.
    (copy / "eval" / "coco_results.json").write_text("[]")
    out = tmp_path / "page.html"
    words = ["report", str(copy), f"data.root={tmp_path / 'data'}", "--output", str(out)]
    assert main(words) == 0
    captions = [
        text for text in Page(out.read_text("utf-8")).pictures if text.endswith("false positives")
    ]
    assert [text[:7] for text in captions] == [f"{number}.png" for number in range(200, 207)]
    assert all(text.endswith(": 1 missed, 0 false positives") for text in captions)
    for path in (tmp_path / "data" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert main(words) == 0
    text = out.read_text("utf-8")
    assert "data:image/jpeg" not in text
    assert all(f"{number}.png" in text for number in range(200, 207))
