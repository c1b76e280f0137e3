"""Comparing runs: groups of seeds, differences, verdicts, tables, JSON and page."""

from __future__ import annotations

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.main import main
from orchestrator.config.resolve import ABSENT
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import StorageError
from orchestrator.runs.compare.comparison import compare_runs, value_text
from orchestrator.runs.compare.page import render_page
from orchestrator.runs.compare.run_folder import read_runs, run_named
from tests.support.run_folders import rng, write_data, write_run
from tests.support.simulated_detectors import Skill, detect, make_truth


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of one experiment, three of a better one, a lone one and one without end."""
    folder = tmp_path_factory.mktemp("comparison")
    write_data(folder / "data", make_truth(rng(1), images=60))
    dataset = read_coco(folder / "data" / "images", folder / "data" / "val.json").dataset
    runs = folder / "runs"
    for seed in (1, 2, 3):
        weak = detect(rng(2, seed), dataset, Skill(recall=0.7))
        write_run(runs, f"weak-{seed}", dataset, weak, seed=seed)
        strong = detect(rng(3, seed), dataset, Skill(recall=0.95))
        write_run(runs, f"strong-{seed}", dataset, strong, "train.optimizer.lr=0.004", seed=seed)
    write_run(runs, "weak-again", dataset, detect(rng(2, 1), dataset, Skill(recall=0.7)),
              weights="weak-1")  # fmt: skip
    write_run(runs, "broken-off", dataset, None, "train.optimizer.lr=0.5")
    return runs


def folders(storage: Path, *names: str) -> list[Path]:
    return [storage / name for name in names]


def test_seeds_are_groups_and_groups_are_compared(storage: Path) -> None:
    names = [f"{kind}-{seed}" for seed in (1, 2, 3) for kind in ("weak", "strong")]
    found = compare_runs(read_runs(folders(storage, *names)))
    weak, strong = found.groups
    assert [run.name for run in weak.runs] == ["weak-1", "weak-2", "weak-3"]
    assert (weak.name, strong.name) == ("weak-1 and 2 more", "strong-1 and 2 more")
    results = [json.loads((storage / run.name / "result.json").read_text()) for run in weak.runs]
    values = [result["metrics"]["AP"] for result in results]
    spread = weak.metric("AP")
    assert spread is not None
    assert (spread.low, spread.high) == (min(values), max(values))
    assert spread.mean == pytest.approx(np.mean(values), abs=1e-15)
    (contrast,) = found.contrasts
    assert contrast.significance is not None
    assert contrast.significance.runs == (3, 3)
    assert contrast.significance.seeds == 6
    assert "better by" in contrast.verdict
    assert found.settings == {
        "seed": (1, 1, 2, 2, 3, 3),
        "train.optimizer.lr": (0.001, 0.004) * 3,
    }


def test_runs_that_differ_by_their_seed_alone_are_not_told_apart(storage: Path) -> None:
    found = compare_runs(read_runs(folders(storage, "weak-1", "weak-2")))
    (contrast,) = found.contrasts
    assert "no significant difference" in contrast.verdict
    assert "differ by their seed alone" in contrast.note
    assert contrast.significance is not None
    assert contrast.significance.seeds == 2


def test_a_repeated_run_is_no_second_seed(storage: Path) -> None:
    found = compare_runs(read_runs(folders(storage, "weak-1", "weak-again", "strong-1")))
    assert [len(group.by_seed) for group in found.groups] == [1, 1]
    assert found.contrasts[0].significance is not None
    assert found.contrasts[0].significance.seeds == 0
    (contrast,) = compare_runs(read_runs(folders(storage, "weak-1", "weak-again"))).contrasts
    assert contrast.note == "The weights are the same, to the bit."
    assert contrast.significance is not None
    assert contrast.significance.numbers["AP"].p == 1.0


def test_what_cannot_be_tested_is_said_and_the_rest_still_shown(storage: Path) -> None:
    found = compare_runs(read_runs(folders(storage, "weak-1", "broken-off")))
    (contrast,) = found.contrasts
    assert contrast.significance is None
    assert "broken-off has no detections yet" in contrast.verdict
    last = found.runs[1]
    assert (last.state, last.steps, last.metrics) == ("unfinished", 15, {})
    assert "broken-off" in render_page(found)


def test_changed_ground_truth_is_noticed(storage: Path, tmp_path: Path) -> None:
    tree = json.loads((storage.parent / "data" / "val.json").read_text())
    for image in tree["images"]:
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / image["file_name"]).touch()
    tree["annotations"] = tree["annotations"][:-40]
    (tmp_path / "val.json").write_text(json.dumps(tree))
    runs = read_runs(folders(storage, "weak-1", "strong-1"), [f"data.root={tmp_path}"])
    (contrast,) = compare_runs(runs).contrasts
    assert contrast.significance is None
    assert "the data is not what it was" in contrast.verdict


def exchanged_names(tree: dict) -> None:
    first, second = tree["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def exchanged_ids(tree: dict) -> None:
    first, second = (one["id"] for one in tree["categories"][:2])
    for one in tree["annotations"]:
        one["category_id"] = {first: second, second: first}.get(one["category_id"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (exchanged_names, r"label maps differ: .*label_map\.json against the data now"),
        (exchanged_ids, "the data is not what it was"),
    ],
)
def test_exchanged_classes_are_noticed(storage: Path, tmp_path: Path, change, words: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(storage.parent / "data", data)
    tree = json.loads((data / "val.json").read_text())
    change(tree)
    (data / "val.json").write_text(json.dumps(tree))
    runs = read_runs(folders(storage, "weak-1", "strong-1"), [f"data.root={data}"])
    (contrast,) = compare_runs(runs).contrasts
    assert contrast.significance is None
    assert re.search(words, contrast.verdict)


def test_curves_are_over_epochs(storage: Path) -> None:
    (run,) = read_runs(folders(storage, "weak-1"))
    assert [epoch for epoch, _ in run.curve("val/AP")] == pytest.approx([2.0, 3.0])
    means = run.epoch_means("train/loss")
    # Five steps an epoch: the first holds steps 1 to 5, whose losses are 10 / step.
    assert means[0] == (1.0, pytest.approx(10 * (1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5))
    assert [epoch for epoch, _ in means] == [1.0, 2.0, 3.0]


def test_a_sweeps_folder_stands_for_its_trials(storage: Path) -> None:
    everything = read_runs([storage])
    assert [run.name for run in everything] == sorted(path.name for path in storage.iterdir())
    twice = read_runs([storage / "weak-1", storage, storage / "weak-1"])
    assert twice[0].name == "weak-1"
    assert len(twice) == len(everything)


def test_the_page_holds_everything_in_itself(storage: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    arguments = [str(path) for path in folders(storage, "weak-1", "weak-2", "strong-1")]
    assert main(["compare", *arguments, "--html", str(page)]) == 0
    text = page.read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)
    drawn = ["".join(ET.fromstring(b64decode(one)).itertext()) for one in pictures]
    # Loss, AP and AP50 over epochs, settings, classes, and one chart of intervals.
    assert len(drawn) == 6
    assert all("weak-1" in chart for chart in drawn[1:4])
    assert "optimizer.lr" in "".join(drawn[0].split())
    for word in ("class 0", "class 1", "strong-1 against weak-1 and 1 more", "Paired bootstrap"):
        assert word in text
    assert str(storage) not in text
    assert render_page(compare_runs(read_runs(folders(storage, "weak-1")))).count("<h2>") == 4


@pytest.mark.parametrize("number", [2, 6])
def test_a_folder_whose_name_is_no_text_is_compared(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    odd = os.fsdecode(b"odd\xff")
    try:
        shutil.copytree(storage / "strong-1", tmp_path / odd)
    except OSError:
        pytest.skip("this file system has no such names")
    names = ("weak-1", "weak-2", "weak-3", "weak-again", "strong-1")[: number - 1]
    arguments = [str(tmp_path / odd), *(str(path) for path in folders(storage, *names))]
    page = tmp_path / "page.html"
    assert main(["compare", *arguments, "--html", str(page), "--baseline", odd]) == 0
    assert r" against odd\udcff" in capsys.readouterr().out
    text = page.read_text("utf-8")
    assert r"odd\udcff" in text
    assert "Paired bootstrap" in text
    label_map = {"names": ["other"], "ids": [1]}
    (tmp_path / odd / "label_map.json").write_text(json.dumps(label_map))
    assert main(["compare", *arguments, "--html", str(page)]) == 0
    assert "label maps differ" in page.read_text("utf-8")


def test_a_run_has_one_colour_on_the_whole_page(storage: Path) -> None:
    text = render_page(compare_runs(read_runs(folders(storage, "broken-off", "weak-1"))))
    swatches = dict(
        reversed(pair)
        for pair in re.findall(r'style="background: (#[0-9a-f]{6})"></span>([\w-]+)', text)
    )
    assert len(set(swatches.values())) == 2
    pictures = re.findall(r'base64,([^"]+)" alt="(AP on val[^"]*)"', text)
    ((chart, caption),) = pictures
    # Only the second run has been evaluated, and keeps its colour where the first has no curve.
    assert caption == "AP on val; none of broken-off"
    drawn = b64decode(chart).decode()
    assert swatches["weak-1"] in drawn
    assert swatches["broken-off"] not in drawn


def test_runs_of_one_name_are_told_apart(storage: Path, tmp_path: Path) -> None:
    places = [tmp_path / side / "runs" / "same" for side in ("before", "after")]
    for place, name in zip(places, ("weak-1", "strong-1"), strict=True):
        shutil.copytree(storage / name, place)
    runs = read_runs([*places, storage / "weak-2"], [f"data.root={storage.parent / 'data'}"])
    assert [run.name for run in runs] == ["before/runs/same", "after/runs/same", "weak-2"]
    text = render_page(compare_runs(runs))
    colours = re.findall(r'background: (#[0-9a-f]{6})"></span>(before|after)/runs/same', text)
    assert len(set(colours)) == 2


def test_values_are_written_as_in_an_experiment_file() -> None:
    texts = [value_text(value) for value in (None, True, 0.5, "a b", ABSENT)]
    assert texts == ["null", "true", "0.5", "a b", "-"]


def test_the_terminal_says_who_is_better(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("strong-1", "weak-1")
    assert main(["compare", *(str(path) for path in folders(storage, *names))]) == 0
    shown = capsys.readouterr().out
    assert "weak-1 against strong-1: worse by" in shown
    assert "train.optimizer.lr" in shown
    many = [str(storage), "--baseline", "weak-2"]
    assert main(["compare", *many]) == 0
    shown = capsys.readouterr().out
    assert "strong-1 and 2 more against weak-2 and 3 more: better by" in shown


def test_the_same_as_json(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(path) for path in folders(storage, "weak-1", "strong-1", "broken-off")]
    assert main(["compare", "--json", "--level", "0.9", *arguments]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in tree["runs"]] == ["weak-1", "strong-1", "broken-off"]
    assert tree["runs"][1]["settings"]["train.optimizer.lr"] == 0.004
    first, second = tree["contrasts"]
    assert first["significance"]["level"] == 0.9
    effect = first["significance"]["numbers"]["AP"]
    before, after = (run["metrics"]["AP"] for run in tree["runs"][:2])
    assert effect["difference"] == pytest.approx(after - before, abs=1e-9)
    assert second["significance"] is None


def test_wrong_folders_and_names(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StorageError, match=r"does not exist; did you mean .*weak-1"):
        read_runs([storage / "waek-1"])
    with pytest.raises(StorageError, match="neither a run folder"):
        read_runs([storage / "weak-1" / "eval"])
    assert main(["compare", str(storage / "weak-1"), "--baseline", "weak-9"]) == 64
    assert "no run 'weak-9'" in capsys.readouterr().err
    for wrong in (["--level", "95"], ["--resamples", "5"]):
        assert main(["compare", str(storage / "weak-1"), *wrong]) == 64
        assert wrong[0] in capsys.readouterr().err


def test_two_runs_have_two_names_whatever_their_folders_are_called(
    storage: Path, tmp_path: Path
) -> None:
    """One has by its letters what is shown of the other's, which is no text."""
    odd, same = os.fsdecode(b"odd\xff"), r"odd\udcff"
    try:
        for name in (odd, same):
            shutil.copytree(storage / "strong-1", tmp_path / name)
    except OSError:
        pytest.skip("this file system has no such names")
    paths = [tmp_path / odd, tmp_path / same, storage / "weak-1"]
    runs = read_runs(paths)
    assert [run.name for run in runs] == [r"odd\udcff", r"odd\\udcff", "weak-1"]
    assert [run_named(runs, run.name).path for run in runs] == paths
    assert run_named(runs, odd).path == paths[0]
    # Where nothing else is called so, it has the name that it is known by.
    assert [run.name for run in read_runs(paths[1:])] == [r"odd\udcff", "weak-1"]
