"""Drawing: what a picture shows of detections and annotations, and what cannot be drawn."""

from __future__ import annotations

import json
from functools import partial

import cv2
import numpy as np
import pytest
from PIL import Image

from orchestrator.cli.main import main
from orchestrator.data.decode import read_image
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError
from orchestrator.pages.drawing import (
    Mark,
    colour_of,
    contrast,
    draw,
    encode_jpeg,
    ink,
    text_colour,
)
from orchestrator.predict import draw_predictions, prediction


def test_drawing_a_file_of_predictions(small_run, images, tmp_path):
    pictures, predictions = str(images / "20*.png"), str(tmp_path / "p.json")
    assert main(["predict", str(small_run), pictures, "--output", predictions]) == 0
    annotations = small_run.parent / "squares" / "annotations" / "instances_val.json"
    out = tmp_path / "drawn"
    words = ["--output", str(out), "--threshold", "0.01", "--sheets"]
    truth = ["--annotations", str(annotations), "--images", str(images)]
    assert main(["draw", predictions, *words, *truth]) == 0
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


def test_a_picture_of_another_size_is_skipped_and_said(tmp_path, capsys):
    entry = {"height": 20, "width": 30, "predictions": [seed_entry()]}
    tree = {}
    for name, shape in {"a.png": (20, 30), "b.png": (20, 31), "c.png": (30, 20)}.items():
        cv2.imwrite(str(tmp_path / name), np.zeros((*shape, 3), np.uint8))
        tree[str(tmp_path / name)] = entry
    (tmp_path / "p.json").write_text(json.dumps(tree))
    out = tmp_path / "drawn"
    words = ["draw", str(tmp_path / "p.json"), "--output", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    for name, size in {"b.png": "31x20", "c.png": "20x30"}.items():
        assert f"skipped: {tmp_path}/{name}: is {size} pixels, but was predicted on 30x20" in said
    assert [path.name for path in out.iterdir()] == ["a.jpg"]


@pytest.mark.parametrize("predicted_on", [(40, 20), (20, 40)])
def test_a_turned_picture_is_drawn_as_it_was_looked_at(tmp_path, predicted_on):
    picture, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(picture, exif=exif)
    one = prediction.Prediction(str(picture), *predicted_on, [], [], [])
    labels, out = LabelMap(("cell",), (1,)), tmp_path / "drawn"
    drawn = draw_predictions.draw_predictions([one], labels, out, threshold=0.5)
    assert drawn.problems == ()
    assert read_image(out / "a.jpg").shape[:2] == predicted_on


def blank_predictions(folder, *names):
    """Predictions of nothing in pictures that are made for them."""
    found = []
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((20, 30, 3), 90, np.uint8))
        found.append(prediction.Prediction(str(folder / name), 20, 30, [], [], []))
    return found


@pytest.mark.parametrize("sheets", [False, True])
def test_a_sheet_does_not_replace_the_drawing_of_a_picture(tmp_path, sheets):
    found = blank_predictions(tmp_path, "a/sheet-0000.jpg", "a/sheet-0001.jpg")
    labels, out = LabelMap(("cell",), (1,)), tmp_path / "out"
    for _ in range(2):
        drawn = draw_predictions.draw_predictions(found, labels, out, threshold=0.5, sheets=sheets)
        files = [*drawn.pictures, *drawn.sheets]
        assert len({path.name for path in files}) == len(files) == 2 + sheets
        assert all(read_image(path).shape == (20, 30, 3) for path in drawn.pictures)
    assert sorted(out.iterdir()) == sorted(files)


@pytest.mark.parametrize(
    ("there", "sheets", "lost"),
    [
        ("x.jpg", False, True),
        ("x.jpg", True, True),
        ("sheet-0000.jpg", True, True),
        ("sheet-0000.jpg", False, False),
        ("z.jpg", True, False),
    ],
)
def test_a_drawing_replaces_nothing_but_drawings(tmp_path, there, sheets, lost):
    found = blank_predictions(tmp_path, "a/w.jpg", "a/x.png")
    blank_predictions(tmp_path, f"b/{there}")
    photo = (tmp_path / "b" / there).read_bytes()
    draw_all = partial(
        draw_predictions.draw_predictions, found, LabelMap(("cell",), (1,)), tmp_path / "b",
        threshold=0.5, sheets=sheets,
    )  # fmt: skip
    if lost:
        with pytest.raises(ConfigError, match=rf"b/{there}: .* no drawing of this program"):
            draw_all()
        # Not one picture was drawn before it was found.
        assert [path.name for path in (tmp_path / "b").iterdir()] == [there]
    else:
        draw_all()
        draw_all()
    assert (tmp_path / "b" / there).read_bytes() == photo


def test_predict_looks_where_it_will_draw_before_it_begins(small_run, images, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "200.jpg").write_bytes(b"another photo")
    words = [str(images / "20*.png"), "--output", str(tmp_path / "p.json")]
    assert main(["predict", str(small_run), *words, "--draw", str(tmp_path / "b")]) == 64
    assert "b/200.jpg: a drawing is to have this name" in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_a_drawing_is_a_jpeg_as_any(tmp_path):
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    draw_predictions.write_drawing(tmp_path / "x.jpg", image)
    (tmp_path / "plain.jpg").write_bytes(encode_jpeg(image))
    with Image.open(tmp_path / "x.jpg") as opened:
        assert opened.info["comment"] == b"drawn by orchestrator"
        assert opened.info["jfif"]
    assert np.array_equal(read_image(tmp_path / "x.jpg"), read_image(tmp_path / "plain.jpg"))
