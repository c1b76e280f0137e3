"""Results, annotations, pictures and detectors meet by id, path and class name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from orchestrator.cli.main import main
from orchestrator.data.decode import BadImageError, read_image
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError
from orchestrator.pages.drawing import colour_of
from orchestrator.predict.draw_predictions import Truth, draw_predictions
from orchestrator.predict.identify import identify, match_classes
from orchestrator.predict.inputs import Picture, list_pictures, passed_over, read_pictures
from orchestrator.predict.prediction import Prediction
from orchestrator.predict.scoring import read_annotations

FILES = ["cam_a/0001.jpg", "cam_a/0002.jpg", "cam_b/0001.jpg", "deep/cam_b/0001.jpg"]


def test_a_picture_is_the_image_that_its_path_ends_in() -> None:
    keys = ["/x/images/cam_a/0002.jpg", "/x/cam_b/0001.jpg", "/y/deep/cam_b/0001.jpg"]
    found = identify([*keys, "/x/0001.jpg", "/x/cam_c/0001.jpg"], FILES, source="a.json")
    assert dict(found.position) == {keys[0]: 1, keys[1]: 2, keys[2]: 3}
    assert found.unknown == ("/x/0001.jpg", "/x/cam_c/0001.jpg")
    assert identify(["s3://b/cam_a/0001.jpg"], FILES, source="a").position == {
        "s3://b/cam_a/0001.jpg": 0
    }


def test_what_is_not_certain_is_refused() -> None:
    with pytest.raises(DataError, match=r"a/1.jpg and /y/1.jpg are both the image .* 1.jpg"):
        identify(["/x/a/1.jpg", "/y/1.jpg"], ["1.jpg"], source="a.json")
    with pytest.raises(DataError, match="any of 2 images"):
        identify(["/x/1.jpg"], ["1.jpg", "./1.jpg"], source="a.json")


def test_classes_are_matched_by_name() -> None:
    mine, theirs = (
        LabelMap(("cell", "plate"), (1, 2)),
        LabelMap(("dot", "plate", "cell"), (0, 1, 2)),
    )
    match = match_classes(mine, theirs, here="run", there="a.json")
    assert match.labels.tolist() == [2, 1]
    assert match.note is not None
    assert "cell: 1 -> 2, plate: 2 -> 1" in match.note
    assert match_classes(mine, mine, here="run", there="a.json").note is None
    with pytest.raises(DataError, match=r"label maps differ: a\.json against run"):
        match_classes(theirs, mine, here="a.json", there="run")


@pytest.fixture
def cameras(small_run: Path, tmp_path: Path) -> Path:
    """Two folders with equal file names, the classes' ids exchanged, and no annotations."""
    images = small_run.parent / "squares" / "images"
    listed = []
    for camera, first in (("cam_a", 200), ("cam_b", 203)):
        (tmp_path / camera).mkdir()
        for number in range(3):
            target = tmp_path / camera / f"{number}.png"
            shutil.copy(images / f"{first + number}.png", target)
            height, width = read_image(target).shape[:2]
            listed.append({"file_name": f"{camera}/{number}.png", "width": width, "height": height})
    tree = {
        "images": [{"id": 10 + i, **one} for i, one in enumerate(listed)],
        "categories": [{"id": 3, "name": "bright"}, {"id": 70, "name": "dark"}],
    }
    (tmp_path / "test.json").write_text(json.dumps(tree))
    return tmp_path


def test_results_are_filed_under_the_ids_of_the_annotations(
    small_run: Path, cameras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = cameras / "p.json"
    words = ["predict", str(small_run), str(cameras / "cam_b"), "--output", str(out)]
    assert main([*words, "--form", "coco", "--annotations", str(cameras / "test.json")]) == 0
    assert "mapped by name" in capsys.readouterr().err
    results = json.loads(out.read_text())
    # Images of cam_b have the ids 13 to 15; the run calls dark 3, the file 70.
    assert {one["image_id"] for one in results} <= {13, 14, 15}
    assert main([*words, "--form", "coco"]) == 0
    plain = json.loads(out.read_text())
    exchanged = {3: 70, 70: 3}
    assert [exchanged[one["category_id"]] for one in plain] == [
        one["category_id"] for one in results
    ]
    assert results


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: tree["images"].pop(3), "1 of 3 inputs are not in"),
        (lambda tree: tree["categories"].pop(), "label maps differ"),
        (lambda tree: tree["images"][4].update(width=5), "are not of the size that"),
        (lambda tree: tree.update(images=[]), "/images: is empty"),
    ],
)
def test_what_does_not_belong_to_the_annotations_is_refused(
    small_run: Path, cameras: Path, capsys: pytest.CaptureFixture[str], change: Any, says: str
) -> None:
    tree = json.loads((cameras / "test.json").read_text())
    change(tree)
    (cameras / "test.json").write_text(json.dumps(tree))
    words = ["predict", str(small_run), str(cameras / "cam_b"), "--form", "coco"]
    out = ["--output", str(cameras / "p.json"), "--annotations", str(cameras / "test.json")]
    assert main([*words, *out]) == DataError.exit_code
    assert says in capsys.readouterr().err


def truth_of(folder: Path, names: tuple[str, ...], boxes: int = 1) -> dict[str, Any]:
    """An image of 400x100 pixels for each camera, with boxes of 10x10 from left to right."""
    return {
        "images": [
            {"id": i, "file_name": f"cam_{c}/0.png", "width": 400, "height": 100}
            for i, c in enumerate("ab")
        ],
        "annotations": [
            {
                "id": 1000 * i + k,
                "image_id": i,
                "category_id": 1 + k % len(names),
                "bbox": [13.0 * (k % 30), 20 + 50 * i + 3 * (k // 30), 10, 10],
            }
            for i in range(2)
            for k in range(boxes)
        ],
        "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(names)],
    }


def test_drawn_truth_is_that_of_the_picture_in_the_colour_of_its_class(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(truth_of(tmp_path, ("plate", "cell"))))
    truth = Truth(read_annotations(tmp_path / "t.json"), "t.json")
    found = []
    for camera in "ab":
        path = tmp_path / f"cam_{camera}" / "0.png"
        path.parent.mkdir()
        cv2.imwrite(str(path), np.zeros((100, 400, 3), np.uint8))
        found.append(Prediction(str(path), 100, 400, [], [], []))
    drawn = draw_predictions(
        found,
        LabelMap(("cell", "plate"), (1, 2)),
        tmp_path / "out",
        threshold=0.5,
        truth=truth,
    )
    assert [file.name for file in drawn.pictures] == ["cam_a-0.jpg", "cam_b-0.jpg"]
    for file, top in zip(drawn.pictures, (20, 70), strict=True):
        pixels = read_image(file).astype(int)
        rows = np.flatnonzero(pixels.sum(axis=(1, 2)) > 200)
        assert abs(rows.min() - top) <= 1
        # The box is a plate, which is label 1 of the predictions, though 0 of its own file.
        colour = pixels[top, 2:8].mean(axis=0)
        away = [float(np.abs(colour - colour_of(label)).sum()) for label in (0, 1)]
        assert away[1] < away[0] / 2


def test_tagged_pictures_are_drawn_upright_with_their_truth(tmp_path: Path) -> None:
    pixels = np.zeros((100, 400, 3), np.uint8)
    pixels[20:30, 0:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "cam_a").mkdir()
    path = tmp_path / "cam_a" / "0.png"
    Image.fromarray(pixels).save(path, exif=exif)
    (tmp_path / "t.json").write_text(json.dumps(truth_of(tmp_path, ("cell",))))
    ((_, shown),) = read_pictures([Picture(str(path))])
    assert not isinstance(shown, BadImageError)
    assert shown.shape == (400, 100, 3)
    truth = Truth(read_annotations(tmp_path / "t.json"), "t.json")
    found = [Prediction(str(path), 400, 100, [], [], [])]
    labels = LabelMap(("cell",), (1,))
    drawn = draw_predictions(found, labels, tmp_path / "out", threshold=0.5, truth=truth)
    assert drawn.problems == ()
    upright = read_image(drawn.pictures[0]).astype(int)
    assert upright.shape == (400, 100, 3)
    # Row 20 to 30 from above is column 70 to 80 once it is turned a quarter to the right.
    lit = upright.sum(axis=2) > 150
    columns = np.flatnonzero(lit[:8].any(axis=0))
    assert (abs(columns.min() - 70) <= 1, abs(columns.max() - 80) <= 1) == (True, True)
    # Below it stands that it was missed, and nothing else is drawn.
    assert lit[10, 70:81].all()
    assert not lit[40:].any()
    # What an earlier version predicted on the pixels as stored is drawn on these.
    found = [Prediction(str(path), 100, 400, [], [], [])]
    drawn = draw_predictions(found, labels, tmp_path / "old", threshold=0.5, truth=truth)
    assert read_image(drawn.pictures[0]).shape == (100, 400, 3)
    assert drawn.problems == ()


def test_names_as_long_as_a_file_system_takes_are_drawn(tmp_path: Path) -> None:
    found = []
    for last in "ab":
        path = tmp_path / f"{'图' * 82}{last}.png"
        cv2.imwrite(str(tmp_path / "x.png"), np.zeros((10, 10, 3), np.uint8))
        (tmp_path / "x.png").rename(path)
        found.append(Prediction(str(path), 10, 10, [], [], []))
    drawn = draw_predictions(found, LabelMap(("a",), (1,)), tmp_path / "out", threshold=0.5)
    assert len({file.name for file in drawn.pictures}) == 2
    assert all(len(file.name.encode()) <= 255 and file.is_file() for file in drawn.pictures)


def test_lists_are_read_like_annotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "data/images/a.jpg",
        "data/images/b.JFIF",
        "data/c.HEIC",
        "here.png",
        "data/images/._a.jpg",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "data" / "list.txt").write_text("images/a.jpg\r\nhere.png\n./images\n")
    monkeypatch.chdir(tmp_path)
    keys = [picture.key for picture in list_pictures(["data/list.txt"])]
    assert keys == ["data/images/a.jpg", "here.png", "data/images/b.JFIF"]
    (tmp_path / "data" / "list.txt").write_bytes("Straße.jpg\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"list\.txt:1: byte 4 is not UTF-8"):
        list_pictures(["data/list.txt"])
    assert passed_over(["data", "here.png"]) == {".heic": 1, ".txt": 1}


def score(folder: Path, *words: str) -> dict[str, Any]:
    arguments = ["evaluate", "--predictions", "r.json", "--annotations", "t.json", *words]
    assert main([*arguments, "--output", str(folder / "out")]) == 0
    tree: dict[str, Any] = json.loads((folder / "out" / "evaluation.json").read_text())
    return tree


def perfect(folder: Path, names: tuple[str, ...], boxes: int) -> None:
    tree = truth_of(folder, names, boxes)
    (folder / "t.json").write_text(json.dumps(tree))
    keys = ("image_id", "category_id", "bbox")
    results = [{key: one[key] for key in keys} | {"score": 0.9} for one in tree["annotations"]]
    (folder / "r.json").write_text(json.dumps(results))


def test_results_are_scored_without_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("person [child]", "person [adult]", "ok [/no]", "=1+1")
    perfect(tmp_path, names, 8)
    assert score(tmp_path)["metrics"]["AP"] == 1.0
    shown = capsys.readouterr().out
    for name in names:
        assert name in shown
    lines = (tmp_path / "out" / "per_class.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [*names[:3], "'=1+1"]


def test_scores_in_per_cent_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    perfect(tmp_path, ("dot",), 8)
    assert score(tmp_path)["calibration"] is not None
    assert "calibration" not in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps([{**one, "score": 90} for one in results]))
    tree = score(tmp_path)
    assert (tree["metrics"]["AP"], tree["calibration"]) == (1.0, None)
    assert "warning: scores go from 90 to 90" in capsys.readouterr().out


@pytest.mark.parametrize("of_detector", [False, True])
def test_results_of_all_images_are_scored_on_the_first(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_detector: bool
) -> None:
    """The last images have no detections, and those of none are refused as ever."""
    monkeypatch.chdir(tmp_path)
    path = small_run.parent / "squares" / "annotations" / "instances_val.json"
    tree = json.loads(path.read_text())
    keys = ("image_id", "category_id", "bbox")
    results = [{key: one[key] for key in keys} | {"score": 0.9} for one in tree["annotations"]]
    (tmp_path / "r.json").write_text(json.dumps(results[:4]))
    words = ["evaluate", "--predictions", "r.json", "--annotations", str(path)]
    home = tmp_path
    if of_detector:
        home = tmp_path / "run"
        shutil.copytree(small_run, home)
        words.insert(1, str(home))
    assert main(words) == 0
    whole = (home / "evaluation" / "evaluation.json").read_bytes()
    assert json.loads(whole)["metrics"]["AP"] < 1
    assert main([*words, "--limit", "3"]) == 0
    first = json.loads((home / "evaluation-first-3" / "evaluation.json").read_text())
    assert (first["about"]["images"], first["metrics"]["AP"]) == (3, 1.0)
    kept = json.loads((home / "evaluation-first-3" / "coco_results.json").read_text())
    assert len(kept) == 3
    assert (home / "evaluation" / "evaluation.json").read_bytes() == whole
    (tmp_path / "r.json").write_text(json.dumps([{**results[0], "image_id": 999}]))
    assert main([*words, "--limit", "3"]) == DataError.exit_code


def test_exchanged_category_ids_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    perfect(tmp_path, ("cell", "plate"), 8)
    score(tmp_path)
    assert "of another class" not in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())
    exchanged = [{**one, "category_id": 3 - one["category_id"]} for one in results]
    (tmp_path / "r.json").write_text(json.dumps(exchanged))
    assert score(tmp_path)["metrics"]["AP"] == 0.0
    assert "16 of 16 detections lie on a box of another class" in capsys.readouterr().out


def test_crowded_images_are_said_and_scored_at_a_chosen_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    perfect(tmp_path, ("dot",), 300)
    tree = score(tmp_path)
    # 100 of 300 boxes in each image: precision is 1 at the recalls 0.00 to 0.33, 34 of 101.
    assert tree["metrics"]["AP"] == pytest.approx(34 / 101)
    assert "even perfect ones get AP 0.3366" in capsys.readouterr().out
    tree = score(tmp_path, "--max-detections", "300")
    assert tree["metrics"]["AP"] == pytest.approx(34 / 101)
    assert tree["about"]["at_max_detections"] == {
        "AP@300": 1.0,
        "AP50@300": 1.0,
        "AP75@300": 1.0,
        "AR@300": 1.0,
    }
    half = score(tmp_path, "--max-detections", "150")["about"]["at_max_detections"]
    assert half["AR@150"] == pytest.approx(0.5)
    assert half["AP@150"] == pytest.approx(51 / 101)


def test_ids_of_the_detector_are_mapped_to_those_of_the_annotations(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_run.parent / "squares" / "annotations" / "instances_val.json"
    tree = json.loads(path.read_text())
    results = [
        {k: one[k] for k in ("image_id", "category_id", "bbox")} | {"score": 0.9}
        for one in tree["annotations"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    exchanged = {3: 70, 70: 3}
    for one in tree["annotations"]:
        one["category_id"] = exchanged[one["category_id"]]
    tree["categories"] = [{"id": 3, "name": "bright"}, {"id": 70, "name": "dark"}]
    (tmp_path / "t.json").write_text(json.dumps(tree))
    files = ["--predictions", str(tmp_path / "r.json"), "--annotations", str(tmp_path / "t.json")]
    words = ["evaluate", str(small_run), *files, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert "mapped by name" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "evaluation.json").read_text())["metrics"]
    assert numbers["AP"] == 1.0
    tree["categories"][0]["name"] = "grey"
    (tmp_path / "t.json").write_text(json.dumps(tree))
    assert main(words) == DataError.exit_code
    assert "label maps differ" in capsys.readouterr().err
    assert main(["evaluate", str(small_run), *files[2:]]) == ConfigError.exit_code
