"""``orchestrator evaluate`` on a small run: training's numbers, any workers, cached predictions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.data.images import image_pixels
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.predict import scoring
from orchestrator.predict.loading import load_detector
from orchestrator.predict.predictor import DetectOptions
from orchestrator.predict.scoring import evaluate_detector, first_images, read_split
from orchestrator.predict.tta import Views
from tests.support.own_process import orchestrator


def evaluate(run: Path, out: Path, *words: str) -> dict:
    assert main(["evaluate", str(run), "--output", str(out), *words]) == 0
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def evaluated(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluated")
    return out, evaluate(small_run, out)


def test_the_numbers_of_training_come_back(small_run, evaluated):
    out, tree = evaluated
    outcome = json.loads((small_run / "result.json").read_text())
    best = {k.removeprefix("val/"): v for k, v in outcome["best_metrics"].items()}
    assert {name: tree["metrics"][name] for name in best} == best
    assert tree["metrics"]["AP"] > 0
    assert tree["about"]["images"] == 7
    assert (out / "per_class.csv").read_text().startswith("class,")


def test_cached_predictions_give_the_same_numbers(small_run, evaluated, tmp_path):
    out, tree = evaluated
    again = evaluate(small_run, tmp_path, "--predictions", str(out / "coco_results.json"))
    for key in tree:
        if key != "about":
            assert again[key] == tree[key], key
    assert (tmp_path / "coco_results.json").read_bytes() == (out / "coco_results.json").read_bytes()


def test_cached_predictions_need_no_weights(small_run, evaluated, tmp_path, monkeypatch):
    out, tree = evaluated

    def unwanted(*arguments, **options):
        raise AssertionError("weights were read")

    for name in ("decode_weights", "read_weights", "build_detector"):
        monkeypatch.setattr(f"orchestrator.predict.loading.{name}", unwanted)
    again = evaluate(small_run, tmp_path, "--predictions", str(out / "coco_results.json"))
    assert again["metrics"] == tree["metrics"]
    assert again["about"]["detector"] == tree["about"]["detector"]


@pytest.mark.ray
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_more_workers_give_the_same_bits(small_run, evaluated, tmp_path, workers):
    out, tree = evaluated
    words = ["evaluate", str(small_run), "--output", str(tmp_path), "--workers", str(workers)]
    orchestrator(tmp_path, *words)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == tree
    for name in ("coco_results.json", "per_class.csv", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_test_time_options_reach_the_result(small_run, tmp_path):
    words = ["detector.postprocess.max_per_image=2", "--flip", "--scales", "1,2"]
    tree = evaluate(small_run, tmp_path, *words, "--fusion", "wbf", "--limit", "3")
    results = json.loads((tmp_path / "coco_results.json").read_text())
    assert len(results) <= 2 * 3
    assert len({one["image_id"] for one in results}) <= 3
    assert (tree["about"]["scales"], tree["about"]["flip"]) == ([1.0, 2.0], True)


def test_an_unreadable_image_is_said_and_counts_as_missed(small_run):
    loaded = load_detector(small_run)
    dataset = first_images(read_split(loaded.resolved.experiment, "val"), 2)
    broken = type(dataset)(**{**dataset.__dict__, "files": (dataset.files[0], "images/gone.jpg")})
    how = DetectOptions(loaded.resolved.experiment.detector.postprocess, Views())
    told: list[int] = []
    done = evaluate_detector(loaded, broken, how, batch_size=1, on_progress=told.append)
    # An image that cannot be read is done with, too.
    assert told == [1, 2]
    assert len(done.unreadable) == 1
    assert "gone.jpg" in done.unreadable[0]
    assert done.analysis.metrics.unseen_images == 1
    gone = type(dataset)(**{**dataset.__dict__, "files": ("a.jpg", "images/gone.jpg")})
    with pytest.raises(DataError, match=r"none of 2 images can be read; the first: .*a\.jpg"):
        evaluate_detector(loaded, gone, how)


def test_a_folder_that_is_lost_on_the_way_gives_no_number(small_run, tmp_path, monkeypatch):
    loaded = load_detector(small_run)
    dataset = read_split(loaded.resolved.experiment, "val")
    shutil.copytree(dataset.root, tmp_path / "root")
    there = replace(dataset, root=str(tmp_path / "root"))

    def losing(data, index):
        if index == 1:
            shutil.rmtree(data.root)
        return image_pixels(data, index)

    monkeypatch.setattr(scoring, "image_pixels", losing)
    how = DetectOptions(loaded.resolved.experiment.detector.postprocess, Views())
    with pytest.raises(StorageError, match="is gone, and so are all"):
        evaluate_detector(loaded, there, how, batch_size=1)


def test_other_classes_are_refused(small_run, tmp_path):
    loaded = load_detector(small_run)
    dataset = read_split(loaded.resolved.experiment, "val")
    names = ("zero", *dataset.label_map.names[1:])
    other = type(dataset)(
        **{
            **dataset.__dict__,
            "label_map": type(dataset.label_map)(names, dataset.label_map.ids),
        }
    )
    how = DetectOptions(loaded.resolved.experiment.detector.postprocess)
    with pytest.raises(DataError, match="label maps differ"):
        evaluate_detector(loaded, other, how)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scales", "1,x"], "--scales 1,x: expected numbers"),
        (["--scales", "1,1"], "names a scale twice"),
        (["--fusion-iou", "2"], "--fusion-iou: found 2, allowed is a number > 0 and < 1"),
        (["--workers", "0"], "--workers: found 0, allowed is a whole number >= 1"),
        (["--limit", "0"], "--limit: found 0"),
        (["second"], "expected one RUN, CHECKPOINT or WEIGHTS"),
    ],
)
def test_bad_options_are_refused(small_run, tmp_path, capsys, words, message):
    arguments = ["evaluate", str(small_run), "--output", str(tmp_path), *words]
    assert main(arguments) == ConfigError.exit_code
    assert message in capsys.readouterr().err
