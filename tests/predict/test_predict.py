"""``orchestrator predict`` and ``draw``: every picture once, however often it was killed."""

from __future__ import annotations

import errno
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import cv2
import numpy as np
import pytest

from detectors.config import PostprocessConfig
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.data.decode import BadImageError, Decoding, read_image
from orchestrator.data.tiling import Tiles
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.pages.drawing import contact_sheet
from orchestrator.predict import draw_predictions, inputs, prediction
from orchestrator.predict.inputs import Picture, list_pictures, read_pictures
from orchestrator.predict.loading import load_detector
from orchestrator.predict.prediction import work_folder
from orchestrator.predict.predictor import DetectOptions
from orchestrator.predict.tta import Views
from tests.support.own_process import orchestrator


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch):
    monkeypatch.setattr(prediction, "_SHARE_BATCHES", 1)


def predict(run: Path, out: Path, *words: str) -> dict:
    assert main(["predict", str(run), *words, "--output", str(out), "--batch", "4"]) == 0
    return json.loads(out.read_text())


def test_the_form_of_the_seed(small_run, images, tmp_path):
    tree = predict(small_run, tmp_path / "p.json", str(images))
    assert list(tree) == sorted(str(path) for path in images.glob("*.png"))
    assert len(tree) == 19
    entry = tree[str(images / "200.png")]
    height, width = cv2.imread(str(images / "200.png")).shape[:2]
    assert (entry["height"], entry["width"]) == (height, width)
    scores = [one["score"] for one in entry["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert scores
    first = entry["predictions"][0]
    assert set(first["bbox"]) == {"x_min", "y_min", "width", "height"}
    assert first["class"] in (
        {"label": 0, "category_id": 3, "name": "dark"},
        {"label": 1, "category_id": 70, "name": "bright"},
    )
    assert not work_folder(tmp_path / "p.json").exists()


def test_results_of_predict_score_as_evaluate_does(small_run, images, tmp_path):
    annotations = small_run.parent / "squares" / "annotations" / "instances_val.json"
    words = [str(images / "2*.png"), "--form", "coco", "--annotations", str(annotations)]
    predict(small_run, tmp_path / "p.json", *words)
    for name, extra in (("cached", ["--predictions", str(tmp_path / "p.json")]), ("fresh", [])):
        out = tmp_path / name
        assert main(["evaluate", str(small_run), "--output", str(out), *extra]) == 0
    cached, fresh = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["metrics"]
        for name in ("cached", "fresh")
    )
    assert cached == pytest.approx(fresh, abs=1e-6)


def test_killed_twice_it_ends_as_the_unbroken_one(small_run, images, tmp_path, monkeypatch, caplog):
    whole = predict(small_run, tmp_path / "whole.json", str(images))
    out = tmp_path / "broken.json"
    true = prediction.ShareWorker.run
    done: list[int] = []

    def dying(self, number):
        if len(done) in (1, 3):
            done.append(-1)
            raise KeyboardInterrupt
        done.append(number)
        return true(self, number)

    monkeypatch.setattr(prediction.ShareWorker, "run", dying)
    arguments = ["predict", str(small_run), str(images), "--output", str(out), "--batch", "4"]
    assert main(arguments) == 130
    assert main(arguments) == 130
    assert not out.exists()
    for count in (1, 2):
        said = f"holds {count} of 5 parts of this prediction, after which the same command goes on"
        assert f"{work_folder(out)}: {said}" in caplog.text
    assert main(arguments) == 0
    assert json.loads(out.read_text()) == whole
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(number for number in done if number >= 0) == [0, 1, 2, 3, 4]


def test_parts_of_another_prediction_are_not_mixed_in(small_run, images, tmp_path, capsys):
    out = tmp_path / "p.json"
    folder = work_folder(out)
    folder.mkdir()
    (folder / "job.json").write_text('{"digest": "another"}')
    arguments = ["predict", str(small_run), str(images), "--output", str(out)]
    assert main(arguments) == ConfigError.exit_code
    assert "parts of another prediction" in capsys.readouterr().err
    assert (folder / "job.json").exists()


def job_of(run: Path, pictures: tuple[Picture, ...], *overrides: str) -> prediction.PredictJob:
    loaded = load_detector(run, overrides=overrides)
    how = DetectOptions(loaded.resolved.experiment.detector.postprocess, tiles=loaded.tiles)
    return prediction.PredictJob(loaded, how, pictures, 4, 1, loaded.pictures)


@pytest.mark.parametrize(
    ("overrides", "same"),
    [
        (["train.batch_size=2", "seed=7"], True),
        (["data.augmentation.name=resize_pad"], False),
        (["data.levels=used"], False),
        (["data.max_pixels=1000"], False),
        (["data.tiles.size=[80, 80]"], False),
        (["detector.postprocess.nms=soft_linear"], False),
        (["detector.bn_eps=0.01"], False),
        (["train.precision=bf16"], False),
        (["cluster.accelerator=npu"], False),
    ],
    ids=str,
)
def test_parts_belong_to_what_the_detections_are_a_function_of(small_run, images, overrides, same):
    pictures = (Picture(str(images / "200.png")),)
    plain, other = job_of(small_run, pictures), job_of(small_run, pictures, *overrides)
    assert (plain.digest == other.digest) == same
    for how in (
        {"views": Views(flip=True)},
        {"views": Views((1.0, 2.0))},
        {"fusion": "wbf"},
        {"fusion_iou": 0.6},
        {"tiles": Tiles((90, 80), 10)},
    ):
        assert replace(plain, how=replace(plain.how, **how)).digest != plain.digest
    assert replace(plain, decoding=Decoding("stored")).digest != plain.digest


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_write_the_same_file(small_run, images, tmp_path):
    predict(small_run, tmp_path / "one.json", str(images))
    words = ["--output", str(tmp_path / "two.json"), "--batch", "4", "--workers", "2"]
    orchestrator(tmp_path, "predict", str(small_run), str(images), *words)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_unreadable_and_empty_pictures(small_run, images, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    words = [str(images / "200.png"), str(tmp_path / "bad.jpg")]
    options = ["detector.postprocess.score_threshold=1.0", "--draw", str(tmp_path / "drawn")]
    tree = predict(small_run, tmp_path / "p.json", *words, *options)
    assert [entry["predictions"] for entry in tree.values()] == [[]]
    assert "skipped" in capsys.readouterr().err
    drawn = read_image(tmp_path / "drawn" / "200.jpg")
    assert drawn.shape == read_image(images / "200.png").shape


def test_nothing_readable_is_an_error_that_leaves_nothing(small_run, images, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    words = [str(small_run), str(tmp_path / "bad.jpg"), "--output", str(tmp_path / "p.json")]
    assert main(["predict", *words]) == DataError.exit_code
    assert "none of 1 pictures can be read" in capsys.readouterr().err
    assert not work_folder(tmp_path / "p.json").exists()
    # It may be there the next time.
    (tmp_path / "bad.jpg").write_bytes((images / "200.png").read_bytes())
    assert main(["predict", *words]) == 0


@pytest.mark.parametrize("content", [b"[7]", b"[]"])
def test_a_part_that_a_disk_has_damaged_is_done_again(
    small_run, images, tmp_path, monkeypatch, caplog, content
):
    out, true = tmp_path / "p.json", prediction.ShareWorker.run
    arguments = ["predict", str(small_run), str(images), "--output", str(out), "--batch", "4"]

    def failing(self, number):
        if number == 4:
            raise OSError(errno.EIO, "Input/output error", "a.png")
        return true(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(prediction.ShareWorker, "run", failing)
        assert main(arguments) == StorageError.exit_code
    assert "p.json.parts: holds 4 of 5 parts" in caplog.text
    next(work_folder(out).glob("*/part-000002.json")).write_bytes(content)
    assert main(arguments) == 0
    assert len(json.loads(out.read_text())) == 19


def test_tiles_without_number_are_refused_before_any_is_made(small_run, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((400, 500, 3), np.uint8))
    out = tmp_path / "p.json"
    words = [str(tmp_path / "large.png"), "--tiles", "8x8+7", "--output", str(out)]
    assert main(["predict", str(small_run), *words]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "500x400 pixels, into 393 rows of 493 = 193749 tiles, allowed are 16384" in said
    assert not work_folder(out).exists()


def test_inputs_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/2.jpg", "a/1.PNG", "a/notes.md", "b/c/3.png"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("list.txt").write_text("b/c/3.png\n\na\n")
    keys = [picture.key for picture in list_pictures(["list.txt", "**/*.png", "a/2.jpg"])]
    assert keys == ["b/c/3.png", "a/1.PNG", "a/2.jpg"]
    with pytest.raises(DataError, match="did you mean b"):
        list_pictures(["bb"])
    with pytest.raises(DataError, match="holds no image"):
        list_pictures(["b"])
    with pytest.raises(DataError, match="there is no such image"):
        list_pictures(["a" * 300 + ".jpg"])
    # What the first word names must not hide that the second one, meant so, names nothing.
    with pytest.raises(DataError, match=r"\[ab\]: fits 2 folders and no file.*write \[ab\]/\*"):
        list_pictures(["a/2.jpg", "[ab]"])


@pytest.fixture
def video(tmp_path) -> Path:
    """Six frames, each lighter than the one before."""
    path = tmp_path / "v.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no MJPG video")
    for number in range(6):
        writer.write(np.full((48, 64, 3), number * 40, np.uint8))
    writer.release()
    return path


def test_watching_a_video_finds_what_predicting_it_does(small_run, video, tmp_path):
    words = [
        "detector.postprocess.score_threshold=0.0001",
        "--all",
        "--output",
        str(tmp_path / "p.json"),
    ]
    assert main(["predict", str(small_run), str(video), *words, "--batch", "1"]) == 0
    predicted = json.loads((tmp_path / "p.json").read_text())
    drawn = tmp_path / "drawn"
    live = ["--video", str(video), "--draw", str(drawn), "--draw-threshold", "0"]
    assert main(["predict", str(small_run), *words, *live]) == 0
    watched = json.loads((tmp_path / "p.json").read_text())
    assert watched == predicted
    assert len(watched) == 6
    assert any(entry["predictions"] for entry in watched.values())
    assert sorted(path.name for path in drawn.iterdir()) == [f"v.avi-{i:06d}.jpg" for i in range(6)]
    assert main(["predict", str(small_run), *words, "--video", str(video), "--frames", "2"]) == 0
    assert json.loads((tmp_path / "p.json").read_text()) == dict(list(predicted.items())[:2])


def test_a_camera_is_watched_until_interrupted(small_run, tmp_path, monkeypatch):
    class Camera:
        """A camera that is interrupted at its fourth frame."""

        def __init__(self, number):
            assert number == 3
            self.count = 0

        def isOpened(self):  # noqa: N802
            return True

        def read(self):
            self.count += 1
            if self.count == 4:
                raise KeyboardInterrupt
            return True, np.full((20, 30, 3), self.count, np.uint8)

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    out = tmp_path / "p.json"
    assert main(["predict", str(small_run), "--camera", "3", "--output", str(out)]) == 0
    tree = json.loads(out.read_text())
    assert list(tree) == [f"camera-3#{number:06d}" for number in range(3)]
    assert {(entry["height"], entry["width"]) for entry in tree.values()} == {(20, 30)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--camera", "97"], DataError, "ls /dev/video"),
        (["--video", "no.avi"], DataError, "cannot open this video"),
        (["a.jpg", "--camera", "0"], ConfigError, "stand in place of inputs"),
        (["a.jpg", "--show"], ConfigError, "belong to --camera or --video"),
        (["--camera", "0", "--form", "coco"], ConfigError, "--form seed"),
        (["--camera", "0", "--frames", "0"], ConfigError, "--frames: found 0, allowed"),
        (["--camera", "0", "--show"], ConfigError, "--draw FOLDER"),
    ],
)
def test_what_cannot_be_watched(small_run, words, code, message, capfd, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert main(["predict", str(small_run), *words]) == code.exit_code
    assert message in capfd.readouterr().err


def test_frames_of_a_video(video, monkeypatch):
    path = video
    monkeypatch.chdir(path.parent)
    Path("videos.txt").write_text("v.a*\n")
    pictures = list_pictures([str(path)])
    assert [picture.frame for picture in pictures] == list(range(6))
    assert pictures[2].key == f"{path}#000002"
    for words in (["*.avi"], ["[v].*"], ["videos.txt"]):
        assert [picture.frame for picture in list_pictures(words)] == list(range(6))
    with pytest.raises(DataError, match="holds no image"):
        list_pictures([str(path.parent)])
    assert inputs.passed_over([str(path.parent)]) == {".avi": 1, ".txt": 1}
    # Any part of it, in any order, gives the same frames.
    for part in (pictures, pictures[3:5], [pictures[4], pictures[1]]):
        for picture, pixels in read_pictures(part):
            assert not isinstance(pixels, BadImageError)
            assert abs(float(pixels.mean()) - picture.frame * 40) < 3
    ((_, beyond),) = read_pictures([Picture(str(path), 9)])
    assert isinstance(beyond, BadImageError)
    monkeypatch.setattr(inputs, "open_video", lambda path: SimpleNamespace(grab=bool, release=bool))
    with pytest.raises(DataError, match="not one frame can be decoded"):
        list_pictures([str(path)])


def test_what_is_worth_a_look():
    kept = PostprocessConfig(score_threshold=0.01, max_per_image=300)
    shown = prediction.for_display(kept)
    assert (shown.score_threshold, shown.max_per_image) == (0.25, 100)
    assert prediction.for_display(kept, {"max_per_image"}).max_per_image == 300
    assert prediction.for_display(kept, {"score_threshold"}).score_threshold == 0.01
    # What the experiment leaves out does not come back.
    less = PostprocessConfig(score_threshold=0.4, max_per_image=20)
    assert prediction.for_display(less) == less
    assert prediction.for_display(PostprocessConfig(max_per_image=None)).max_per_image == 100


NMS_MODES = get_args(PostprocessConfig.model_fields["nms"].annotation)


@pytest.mark.parametrize("nms", NMS_MODES)
@pytest.mark.parametrize(
    ("words", "lowest"),
    [
        ([], 0.25),
        (["--threshold", "0.3"], 0.3),
        (["--threshold", "0.3", "--form", "coco"], 0.3),
        (["detector.postprocess.score_threshold=0.3"], 0.3),
    ],
)
def test_a_threshold_holds_where_suppression_lowers_scores(
    small_run, images, tmp_path, nms, words, lowest
):
    # Low enough an overlap, and a limit high enough, for scores to fall and to be kept.
    common = [f"nms={nms}", "iou_threshold=0.2", "max_per_image=10000"]
    overrides = [f"detector.postprocess.{word}" for word in common]

    def scores(*words: str) -> list[float]:
        tree = predict(small_run, tmp_path / "p.json", str(images / "20*.png"), *overrides, *words)
        of_seed = isinstance(tree, dict)
        parts = [entry["predictions"] for entry in tree.values()] if of_seed else [tree]
        return [one["score"] for part in parts for one in part]

    found = scores(*words)
    assert found
    assert min(found) >= lowest
    # Suppression alone goes below, as scoring wants it, and as the value says that is its own.
    by_hand = "detector.postprocess.soft_score_threshold=0.001"
    assert (min(scores(*words, by_hand)) < lowest) == (nms != "hard")


def test_what_people_get_is_worth_a_look_and_what_is_scored_is_all(
    small_run, images, tmp_path, monkeypatch
):
    monkeypatch.setattr(prediction, "DISPLAY_LIMIT", 3)
    most = {}
    for name, words in {
        "shown": [],
        "all": ["--all"],
        "coco": ["--form", "coco"],
        "by hand": ["detector.postprocess.max_per_image=7"],
    }.items():
        tree = predict(small_run, tmp_path / f"{name}.json", str(images / "20*.png"), *words)
        text = (tmp_path / f"{name}.json").read_text()
        assert ": " not in text
        assert "\n" not in text
        if isinstance(tree, list):
            most[name] = max(Counter(one["image_id"] for one in tree).values())
        else:
            most[name] = max(len(entry["predictions"]) for entry in tree.values())
    assert most == {"shown": 3, "all": 100, "coco": 100, "by hand": 7}


def test_a_threshold_holds_for_the_file_and_the_drawings(
    small_run, images, tmp_path, monkeypatch, capsys
):
    drawn = []

    def draw(found, *_, threshold, limit, **__):
        drawn.append((threshold, limit))
        return SimpleNamespace(problems=(), pictures=())

    monkeypatch.setattr(draw_predictions, "draw_predictions", draw)
    picture, folder = str(images / "200.png"), str(tmp_path / "drawn")
    found = []
    for words in (
        ["--threshold", "0.1"],
        ["detector.postprocess.score_threshold=0.1"],
        ["--all"],
        ["--form", "coco"],
        ["--form", "coco", "--threshold", "0.1"],
        ["--draw-threshold", "0.7"],
    ):
        out = tmp_path / f"{len(found)}.json"
        found.append(predict(small_run, out, picture, "--draw", folder, *words))
    detector = load_experiment(small_run / "config" / "resolved.yaml").experiment.detector
    kept = detector.postprocess.score_threshold
    assert found[0] == found[1]
    assert drawn == [
        (0.1, None), (0.1, None), (kept, None), (0.25, 100), (0.1, 100), (0.7, None)
    ]  # fmt: skip
    words = [str(small_run), picture, "--all", "--threshold", "0.5"]
    assert main(["predict", *words]) == 64
    assert "contradict each other" in capsys.readouterr().err


def test_a_contact_sheet_holds_every_image():
    sheet = contact_sheet([np.full((10, 20, 3), 50 * i, np.uint8) for i in range(5)], columns=2)
    assert sheet.shape == (3 * 320, 2 * 320, 3)
    centres = [sheet[160 + 320 * (i // 2), 160 + 320 * (i % 2), 0] for i in range(5)]
    assert centres == [0, 50, 100, 150, 200]
