"""``orchestrator predict`` and ``draw``: every picture once, however often it was killed."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from detectors.config import PostprocessConfig
from orchestrator.cli.main import main
from orchestrator.data.decode import BadImageError, read_image
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.pages.drawing import (
    Mark,
    colour_of,
    contact_sheet,
    contrast,
    draw,
    ink,
    text_colour,
)
from orchestrator.predict import draw_predictions, inputs, prediction
from orchestrator.predict.inputs import Picture, list_pictures, read_pictures
from orchestrator.predict.prediction import work_folder
from tests.support.own_process import orchestrator


@pytest.fixture(scope="module")
def images(small_run):
    return small_run.parent / "squares" / "images"


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
        (["--camera", "0", "--frames", "0"], ConfigError, "--frames 0: must be at least 1"),
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
    pictures = list_pictures([str(path)])
    assert [picture.frame for picture in pictures] == list(range(6))
    assert pictures[2].key == f"{path}#000002"
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


def test_drawing_a_file_of_predictions(small_run, images, tmp_path):
    predict(small_run, tmp_path / "p.json", str(images / "20*.png"))
    annotations = small_run.parent / "squares" / "annotations" / "instances_val.json"
    out = tmp_path / "drawn"
    words = ["--output", str(out), "--threshold", "0.01", "--sheets"]
    truth = ["--annotations", str(annotations), "--images", str(images)]
    assert main(["draw", str(tmp_path / "p.json"), *words, *truth]) == 0
    assert len(list(out.glob("20*.jpg"))) == 7
    assert read_image(out / "sheet-0000.jpg").shape == (640, 1280, 3)
    plain, drawn = read_image(images / "200.png"), read_image(out / "200.jpg")
    assert np.abs(plain.astype(int) - drawn).max() > 100


def seed_entry(**values):
    """A detection as predict writes it, with other values."""
    kind = {"label": 0, "category_id": 3, "name": "dark"} | values.pop("kind", {})
    box = {"x_min": 1, "y_min": 2, "width": 3, "height": 4}
    return {"bbox": box, "class": kind, "score": 0.5} | values


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ([1, 2], "is a list, as COCO results are"),
        (7, "the top level is an integer (7)"),
        ({"a.png": 7}, "/a.png: is an integer (7), expected an object"),
        ({"a.png": [seed_entry(kind={"label": 10**9})]}, "/class/label: is 1000000000, allowed"),
        ({"a.png": [seed_entry(kind={"label": 1.5})]}, "/class/label: is a number (1.5)"),
        ({"a.png": [seed_entry(score=None)]}, "/a.png/predictions/0/score: is null"),
        ({"a.png": [seed_entry(bbox=[1, 2, 3, 4])]}, "/bbox: is a list, expected an object of x"),
        (
            {"a.png": [seed_entry(), seed_entry(kind={"name": "bright"})]},
            "/a.png/predictions/1/class: label 0 is 'bright' with id 3 here, and 'dark'",
        ),
        ({"\ud800.png": [seed_entry()]}, "is the path of no picture"),
        ({"gone.png": [seed_entry()]}, "none of the 1 pictures can be drawn on"),
    ],
)
def test_what_is_no_prediction_is_refused(tree, says, tmp_path, capsys):
    if isinstance(tree, dict):
        tree = {
            key: rows if isinstance(rows, int) else {"height": 9, "width": 9, "predictions": rows}
            for key, rows in tree.items()
        }
    (tmp_path / "p.json").write_text(json.dumps(tree))
    words = ["draw", str(tmp_path / "p.json"), "--output", str(tmp_path / "drawn")]
    assert main(words) == DataError.exit_code
    assert says in capsys.readouterr().err


def test_pictures_without_annotations_are_said(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((9, 9, 3), np.uint8))
    entry = {"height": 9, "width": 9, "predictions": [seed_entry()]}
    tree = {str(tmp_path / name): entry for name in ("a.png", "b.png")}
    (tmp_path / "p.json").write_text(json.dumps(tree))
    image = {"id": 1, "file_name": "b.png", "width": 9, "height": 9}
    truth = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "dark"}]}
    (tmp_path / "t.json").write_text(json.dumps(truth))
    words = ["draw", str(tmp_path / "p.json"), "--output", str(tmp_path / "drawn")]
    assert main([*words, "--annotations", str(tmp_path / "t.json")]) == 0
    said = capsys.readouterr().out
    assert f"1 of 2 pictures are none of the images of {tmp_path}/t.json" in said
    image["file_name"] = "c.png"
    (tmp_path / "t.json").write_text(json.dumps(truth))
    assert main([*words, "--annotations", str(tmp_path / "t.json")]) == DataError.exit_code
    assert "2 of 2 inputs are not in" in capsys.readouterr().err


def test_marks_have_the_colour_of_their_class():
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = draw(image, [Mark((10, 20, 50, 50), 4)])
    assert tuple(drawn[20, 30]) == colour_of(4)
    assert tuple(drawn[35, 30]) == (0, 0, 0)
    assert image.max() == 0
    assert len({colour_of(label) for label in range(200)}) > 150


def test_a_label_can_be_read_on_every_colour():
    black, white = (0, 0, 0), (255, 255, 255)
    assert contrast(black, white) == pytest.approx(21.0)
    assert contrast((255, 0, 0), white) == pytest.approx(3.998, abs=1e-3)  # WCAG's example of red
    assert text_colour((255, 255, 0)) == black
    assert text_colour((0, 0, 255)) == white
    for label in range(200):
        colour = colour_of(label)
        assert contrast(colour, text_colour(colour)) >= 4.5  # AA for text of any size
        assert 3.0 <= contrast(ink(colour), white) < 21.0  # AA for lines of a chart


def test_what_a_box_is_can_be_told_without_colours():
    image = np.zeros((200, 200, 3), np.uint8)
    box = (40, 60, 160, 120)
    top = {}
    for kind in ("detection", "false positive", "annotation", "missed"):
        drawn = draw(image, [Mark(box, 2, kind=kind)])
        top[kind] = (drawn[58:63, 50:150].sum(axis=2) > 0).sum(axis=0)  # Lit pixels by column.
    assert set(top["detection"]) == {2} or set(top["detection"]) == {3}
    assert set(top["annotation"]) == {1}
    assert 0 in top["false positive"]
    assert top["false positive"].max() > 1
    named = draw(image, [Mark(box, 2, "cell", kind="missed")])
    assert named[125:].any()
    assert not named[:59].any()


def drawn_kinds(predictions, annotations, folder):
    """Marks of a picture, as they are drawn."""
    seen = []

    def watch(image, marks, **_):
        seen.extend(marks)
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draw_predictions, "draw", watch)
        words = ["draw", str(predictions), "--annotations", str(annotations)]
        assert main([*words, "--output", str(folder)]) == 0
    return [(mark.kind, mark.text) for mark in seen]


def test_misses_and_false_positives_are_told_apart(tmp_path):
    picture = tmp_path / "x.png"
    cv2.imwrite(str(picture), np.zeros((100, 200, 3), np.uint8))
    classes = {"cell": 0, "plate": 1}

    def one(name, x, score, width=20):
        return {
            "bbox": {"x_min": x, "y_min": 10, "width": width, "height": 20},
            "class": {"label": classes[name], "category_id": classes[name] + 1, "name": name},
            "score": score,
        }

    predictions = [
        one("cell", 12, 0.9),  # IoU 18 / 22 with the first box.
        one("cell", 14, 0.8),  # A duplicate of it.
        one("plate", 60, 0.7),  # On a cell.
        one("plate", 120, 0.24),  # Right, but not worth a look.
        one("cell", 160, 0.5),  # In a crowd, which counts as neither.
    ]
    tree = {str(picture): {"height": 100, "width": 200, "predictions": predictions}}
    (tmp_path / "p.json").write_text(json.dumps(tree))
    boxes = [("cell", 10, 20, 0), ("cell", 60, 20, 0), ("plate", 120, 20, 0), ("cell", 150, 50, 1)]
    annotations = {
        "images": [{"id": 1, "file_name": "x.png", "width": 200, "height": 100}],
        "categories": [{"id": label + 1, "name": name} for name, label in classes.items()],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": classes[name] + 1,
                "bbox": [x, 10, width, 20],
                "area": width * 20,
                "iscrowd": crowd,
                **({"segmentation": {"size": [100, 200], "counts": [20000]}} if crowd else {}),
            }
            for number, (name, x, width, crowd) in enumerate(boxes, start=1)
        ],
    }
    (tmp_path / "t.json").write_text(json.dumps(annotations))
    assert drawn_kinds(tmp_path / "p.json", tmp_path / "t.json", tmp_path / "out") == [
        ("detection", "cell 0.90"),
        ("false positive", "cell 0.80"),
        ("false positive", "plate 0.70"),
        ("detection", "cell 0.50"),
        ("annotation", ""),
        ("missed", "cell"),
        ("missed", "plate"),
        ("annotation", ""),
    ]


def test_drawings_are_named_as_their_pictures(tmp_path):
    blank = np.zeros((20, 30, 3), np.uint8)
    names = ["a/x.jpg", "a/y.jpeg", "a/z.PNG", "b/x.jpg", "a/twin.jpg", "a/twin.png", "a/v.1.bmp"]
    found = []
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), blank)
        found.append(prediction.Prediction(str(tmp_path / name), 20, 30, [], [], []))
    labels = LabelMap(("cell",), (1,))
    drawn = draw_predictions.draw_predictions(found, labels, tmp_path / "out", threshold=0.5)
    assert [path.name for path in drawn.pictures] == [
        "a-x.jpg", "y.jpg", "z.jpg", "b-x.jpg", "twin.jpg", "twin.png.jpg", "v.1.jpg",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="holds pictures that are to be drawn on"):
        draw_predictions.draw_predictions(found, labels, tmp_path / "a", threshold=0.5)


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


def test_a_contact_sheet_holds_every_image():
    sheet = contact_sheet([np.full((10, 20, 3), 50 * i, np.uint8) for i in range(5)], columns=2)
    assert sheet.shape == (3 * 320, 2 * 320, 3)
    centres = [sheet[160 + 320 * (i // 2), 160 + 320 * (i % 2), 0] for i in range(5)]
    assert centres == [0, 50, 100, 150, 200]
