from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from detectors.registry import DETECTORS, build_detector
from orchestrator.cli.main import main
from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import read_image
from orchestrator.data.doctor.boxes import best_overlaps, describe, prior_recall
from orchestrator.data.doctor.examine import Examination, examine, require_usable
from orchestrator.data.doctor.images import ImageFacts, alike, equal_files, look_of, scan
from orchestrator.data.doctor.pictures import HEAT_CELLS, batch_sheet, heat
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.split import read_splits
from orchestrator.errors import DataError
from orchestrator.pages.drawing import encode_jpeg
from tests.support.data_cases import make_plan, textured, write_coco, write_image

SHARED = Path(__file__).parents[4] / "shared" / "datasets"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight training and four validation images, all sound and different."""
    for split, count, seed in (("train", 8, 1), ("val", 4, 2)):
        write_coco(tmp_path / split, count, seed=seed)
    return tmp_path


def config_of(folder: Path, **values: Any) -> DataConfig:
    splits = {
        name: SplitConfig(images=f"{name}/images", annotations=f"{name}/instances.json")
        for name in ("train", "val")
    }
    return DataConfig(root=str(folder), **splits, **values)


def change(folder: Path, split: str, edit: Any) -> None:
    path = folder / split / "instances.json"
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def found(examination: Examination) -> dict[str, tuple[str, str, int]]:
    """Verdict, split and count of each finding."""
    return {
        one.finding.kind: (one.verdict.name.lower(), one.split, one.finding.count)
        for one in examination.report.diagnoses
    }


def test_sound_data_set_has_no_findings(folder: Path) -> None:
    watched: list[tuple[str, int, int]] = []
    result = examine(config_of(folder), watch=lambda *at: watched.append(at))
    assert found(result) == {}
    assert result.report.exit_code == 0
    assert result.report.to_json()["verdict"] == "sound"
    assert watched[7:9] == [("train", 8, 8), ("val", 1, 4)]
    facts = result.report.splits["train"]
    assert (facts["images"], facts["boxes"], facts["images_without_boxes"]) == (8, 24, 0)
    assert sum(of["boxes"] for of in facts["classes"].values()) == 24


def test_every_kind_of_bad_image_is_quarantined(folder: Path) -> None:
    images = folder / "train" / "images"
    (images / "000.jpg").unlink()
    (images / "001.jpg").write_text("<html>")
    (images / "002.jpg").write_bytes((images / "002.jpg").read_bytes()[:-200])
    write_image(images / "003.jpg", textured(33, 44, 0))
    result = examine(config_of(folder, max_bad_fraction=0.5))
    assert found(result) == {
        "missing_image": ("quarantine", "train", 1),
        "unreadable_image": ("quarantine", "train", 2),
        "wrong_size_image": ("quarantine", "train", 1),
    }
    assert result.report.exit_code == 0
    (unreadable,) = [
        one.finding for one in result.report.diagnoses if one.finding.kind == "unreadable_image"
    ]
    assert "001.jpg: not an image of a known format" in unreadable.examples[0]
    assert "002.jpg: truncated JPEG" in unreadable.examples[1]
    strict = examine(config_of(folder, max_bad_fraction=0.4))
    assert found(strict)["too_many_bad_images"] == ("refuse", "train", 4)
    assert strict.report.exit_code == 65


def test_swapped_sides_are_recognised(folder: Path) -> None:
    def swap(tree: Any) -> None:
        image = tree["images"][2]
        image["width"], image["height"] = image["height"], image["width"]

    change(folder, "train", swap)
    result = examine(config_of(folder, max_bad_fraction=1.0))
    (one,) = [d for d in result.report.diagnoses if d.finding.kind == "wrong_size_image"]
    assert one.finding.examples[0].endswith("(width and height swapped?)")


def test_images_that_are_there_twice(folder: Path) -> None:
    train, val = folder / "train" / "images", folder / "val" / "images"
    change(folder, "train", lambda tree: tree["images"][1].update(width=80, height=60))
    change(folder, "train", lambda tree: tree["images"][0].update(width=80, height=60))
    change(folder, "val", lambda tree: tree["images"][0].update(width=80, height=60))
    change(folder, "val", lambda tree: tree["images"][1].update(width=160, height=120))
    picture = textured(60, 80, 77)
    write_image(train / "000.jpg", picture)
    shutil.copy(train / "000.jpg", train / "001.jpg")
    shutil.copy(train / "000.jpg", val / "000.jpg")
    # The same picture, larger and compressed hard.
    larger = cv2.cvtColor(cv2.resize(picture, (160, 120)), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(val / "001.jpg"), larger, [cv2.IMWRITE_JPEG_QUALITY, 60])
    result = examine(config_of(folder))
    kinds = found(result)
    assert kinds["equal_images"] == ("note", "one split", 1)
    assert kinds["equal_images_across_splits"] == ("warning", "train, val", 1)
    assert kinds["similar_images_across_splits"] == ("note", "train, val", 2)
    examples = {one.finding.kind: one.finding.examples for one in result.report.diagnoses}
    assert examples["equal_images"] == ("train 000.jpg = train 001.jpg",)
    assert examples["equal_images_across_splits"] == ("train 000.jpg = val 000.jpg",)
    assert "train 000.jpg = val 001.jpg" in examples["similar_images_across_splits"]


def test_look_by_hand() -> None:
    # Brighter to the left everywhere, except in the lower half.
    ramp = np.linspace(250, 10, 288, dtype=np.uint8)
    grey = np.repeat(ramp[None], 256, axis=0)
    grey[128:] = grey[128:, ::-1]
    content = cv2.imencode(".png", grey)[1].tobytes()
    assert look_of(content) == 0xFFFFFFFF00000000
    flat = cv2.imencode(".png", np.full((64, 64), 200, np.uint8))[1].tobytes()
    assert look_of(flat) is None


def test_looks_are_compared_like_a_loop_over_all_pairs() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    base = [int(value) for value in rng.integers(0, 1 << 63, 30)]
    looks = base + [
        value ^ sum(1 << int(bit) for bit in rng.choice(64, count, replace=False))
        for count, value in enumerate(base[:6])
    ]
    facts = [ImageFacts(i, content=f"{i}", look=look) for i, look in enumerate(looks)]
    facts.append(ImageFacts(len(facts), content="none", look=None))
    slow = [
        (a, b)
        for a in range(len(looks))
        for b in range(a + 1, len(looks))
        if bin(looks[a] ^ looks[b]).count("1") <= 3
    ]
    assert len(slow) == 4
    assert alike(facts) == slow


def test_many_equal_looks_do_not_take_all_pairs() -> None:
    facts = [ImageFacts(i, content=f"{i}", look=1) for i in range(5000)]
    assert len(alike(facts)) == 4999


def test_equal_files_are_grouped() -> None:
    facts = [ImageFacts(i, content=c) for i, c in enumerate(["a", "b", "a", "", "a", ""])]
    assert equal_files(facts) == [[0, 2, 4]]


def test_rare_classes_are_counted(folder: Path) -> None:
    def edit(tree: Any) -> None:
        first = tree["annotations"][0]
        many = [{**first, "id": 1000 + k, "bbox": [k % 20, k // 20, 9, 9]} for k in range(201)]
        tree["annotations"] = [{**one, "category_id": 1} for one in many]
        tree["annotations"] += [{**first, "id": 2000, "category_id": 2}]

    change(folder, "train", edit)
    (one,) = [d for d in examine(config_of(folder)).report.diagnoses if "imbal" in d.finding.kind]
    assert str(one) == (
        "note       train: class_imbalance: 1 class with less than 1/100 of the boxes of another "
        "(one: 201, two: 1)"
    )


def test_classes_crowds_and_empty_images_are_noted(folder: Path) -> None:
    def edit(tree: Any) -> None:
        tree["categories"].append({"id": 3, "name": "three"})
        first = tree["images"][0]["id"]
        tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != first]
        for annotation in tree["annotations"]:
            annotation["category_id"] = 1
        tree["annotations"][-1]["category_id"] = 2
        tree["annotations"][0]["iscrowd"] = 1

    change(folder, "train", edit)
    change(folder, "val", lambda tree: tree["categories"].append({"id": 3, "name": "three"}))
    result = examine(config_of(folder))
    assert found(result) == {
        "class_without_boxes": ("note", "val", 1),
        "image_without_boxes": ("note", "train", 1),
        "crowd_box": ("note", "train", 1),
    }
    facts = result.report.splits["train"]
    assert facts["classes"]["one"] == {"boxes": 19, "images": 7}
    assert facts["classes"]["two"] == {"boxes": 1, "images": 1}
    assert facts["crowd_boxes"] == 1


def test_malformed_annotations_are_a_refusal_with_all_places(folder: Path) -> None:
    def edit(tree: Any) -> None:
        tree["annotations"][2]["bbox"] = [1, 2]
        tree["images"][1]["width"] = 0

    change(folder, "train", edit)
    result = examine(config_of(folder))
    assert result.report.exit_code == 65
    assert found(result) == {"unusable": ("refuse", "train", 2)}
    assert list(result.splits) == ["val"]
    examples = result.report.diagnoses[0].finding.examples
    assert examples[0].startswith("/images/1/width: is 0")
    assert examples[1].startswith("/annotations/2/bbox: has 2 values")


def test_path_that_leads_out_has_the_code_of_a_run(folder: Path) -> None:
    change(folder, "val", lambda tree: tree["images"][0].update(file_name="../../x.jpg"))
    assert examine(config_of(folder)).report.exit_code == 77


def test_different_classes_and_nothing_to_score_are_refused(folder: Path) -> None:
    change(folder, "val", lambda tree: tree["categories"][0].update(name="eins"))
    change(folder, "val", lambda tree: tree.update(annotations=[]))
    kinds = found(examine(config_of(folder)))
    assert kinds["unusable"][:2] == ("refuse", "train, val")
    assert kinds["no_boxes"] == ("refuse", "val", 1)


def test_crowds_alone_cannot_be_scored(folder: Path) -> None:
    def edit(tree: Any) -> None:
        for annotation in tree["annotations"]:
            annotation["iscrowd"] = 1

    change(folder, "val", edit)
    result = examine(config_of(folder))
    assert found(result)["no_boxes"] == ("refuse", "val", 1)
    assert result.report.exit_code == 65


def one_image(boxes: list[list[float]], folder: Path) -> Dataset:
    write_coco(folder, 1, boxes=1)
    change(
        folder.parent,
        folder.name,
        lambda tree: tree.update(
            images=[{"id": 1, "file_name": "000.jpg", "width": 200, "height": 100}],
            annotations=[
                {
                    "id": i + 1,
                    "image_id": 1,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for i, box in enumerate(boxes)
            ],
        ),
    )
    return read_coco(folder / "images", folder / "instances.json").dataset


def test_recall_of_priors_by_hand(tmp_path: Path) -> None:
    data = one_image([[0, 0, 100, 50], [0, 0, 20, 20], [150, 50, 50, 50]], tmp_path / "a")
    # Where x is halved and moved by 7, the boxes are 50x50, 10x20 and 25x50.
    priors = np.array([[7, 0, 57, 50], [7, 0, 17, 10]], dtype=np.float32)
    seen = []

    def view(height: int, width: int) -> tuple[float, float, float, float]:
        seen.append((height, width))
        return 0.5, 1.0, 7.0, 0.0

    recall = prior_recall(data, priors, view)
    assert seen == [(100, 200)]
    assert recall["small"] == {"boxes": 1, "recall": 1.0, "mean_iou": 0.5}
    assert recall["medium"]["boxes"] == 2
    assert recall["medium"]["recall"] == 0.5
    assert recall["medium"]["mean_iou"] == 0.5
    assert recall["all"]["recall"] == pytest.approx(2 / 3, abs=1e-4)
    assert "large" not in recall


def test_overlaps_are_those_of_torchvision() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    boxes, priors = (
        np.concatenate([low, low + rng.uniform(1, 40, (n, 2))], axis=1).astype(np.float32)
        for n in (70, 900)
        for low in [rng.uniform(0, 80, (n, 2))]
    )
    expected = box_iou(torch.from_numpy(boxes), torch.from_numpy(priors)).amax(1)
    assert np.allclose(best_overlaps(boxes, priors), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_shows_its_priors(name: str) -> None:
    small = {"ssd": {"variant": "ssd300_mobilenet_v2", "width": 0.25}}.get(name, {})
    detector = build_detector(
        DETECTORS[name][0].model_validate({"name": name, **small}), num_classes=2
    )
    boxes = detector.prior_boxes()
    if boxes is None:
        pytest.skip("a detector without priors")
    assert boxes.shape[1] == 4
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    height, width = detector.input_size
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # The last cell of a map may lie across the edge.
    assert (centres >= 0).all()
    assert (centres <= torch.tensor([width * 1.1, height * 1.1])).all()


def test_percentiles_and_sizes_by_hand(tmp_path: Path) -> None:
    data = one_image([[0, 0, 10, 10], [0, 0, 20, 10], [0, 0, 96, 96]], tmp_path / "a")
    facts = describe(data)
    assert facts["sizes"] == {"small": 2, "medium": 0, "large": 1}
    assert facts["box_width"]["p0"] == 10
    assert facts["box_width"]["p50"] == 20
    assert facts["box_aspect"]["p100"] == 2


def test_heat_by_hand(tmp_path: Path) -> None:
    data = one_image([[0, 0, 100, 50], [0, 0, 50, 100], [190, -20, 50, 30]], tmp_path / "a")
    values = heat(data)
    half, quarter = HEAT_CELLS // 2, HEAT_CELLS // 4
    assert (values[:half, :quarter] == 1).all()
    assert (values[:half, quarter:half] == 0.5).all()
    assert (values[half:, :quarter] == 0.5).all()
    assert values[0, -1] == 0.5
    assert (values[half:, half:] == 0).all()


def test_quick_look_refuses_before_a_run(folder: Path) -> None:
    place = folder / "train" / "images", folder / "train" / "instances.json"
    require_usable(read_coco(*place).dataset, "train", 0.0)
    (folder / "train" / "images" / "004.jpg").write_bytes(b"nothing")
    data = read_coco(*place).dataset
    require_usable(data, "train", 0.125)
    with pytest.raises(DataError, match=r"data\.train: 1 of 8 images cannot be used") as caught:
        require_usable(data, "train", 0.12)
    assert "004.jpg: not an image of a known format" in str(caught.value)
    headers = scan(data, [3, 4], whole=False)
    assert [one.kind for one in headers] == [None, "unreadable_image"]


class Tags(HTMLParser):
    """Counts start and end tags."""

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def experiment(folder: Path) -> Path:
    path = folder / "e.yaml"
    path.write_text(
        "name: e\ndetector: {name: ssd, width: 0.25}\n"
        f"data:\n  root: {folder}\n  cache: {folder}/cache\n"
        "  train: {images: train/images, annotations: train/instances.json}\n"
        "  val: {images: val/images, annotations: val/instances.json}\n"
        "train: {epochs: 2, batch_size: 4, optimizer: {name: sgd, lr: 0.1}}\n"
    )
    return path


def test_command_writes_report_page_and_sheet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, "train", lambda tree: tree["annotations"][0].update(bbox=[1, 1, 0, 5]))
    change(folder, "train", lambda tree: tree["categories"][0].update(name="<b>one"))
    change(folder, "val", lambda tree: tree["categories"][0].update(name="<b>one"))
    path = experiment(folder)
    written = [folder / "out" / name for name in ("r.json", "p.html", "a.jpg")]
    options = zip(("--json", "--page", "--show-augmented"), map(str, written), strict=True)
    assert main(["check", str(path), *(part for pair in options for part in pair)]) == 0
    printed = capsys.readouterr().out
    assert "repair     train: zero_size_box: 1 dropped (/annotations/0/bbox)" in printed
    assert printed.splitlines()[-1] == "verdict: repair"

    report = json.loads(written[0].read_text())
    assert (report["verdict"], report["exit_code"]) == ("repair", 0)
    zero = next(one for one in report["findings"] if one["kind"] == "zero_size_box")
    assert zero["examples"] == ["/annotations/0/bbox"]
    assert report["splits"]["train"]["prior_recall"]["all"]["boxes"] == 23

    html = written[1].read_text()
    tags = Tags()
    tags.feed(html)
    assert tags.opened.count("h2") == 2
    # Of each split where boxes lie and its images, which are fewer than the 24 of a page.
    assert tags.opened.count("img") == 2 + 8 + 4
    val = json.loads((folder / "val" / "instances.json").read_text())["images"]
    assert all(f"<figcaption>{one['file_name']}</figcaption>" in html for one in val)
    # Sentences stand below the names of their columns where a page is narrow.
    assert '<td data-head="what is done">' in html
    assert "script" not in tags.opened
    assert "b" not in tags.opened
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in tags.sources)

    sheet = read_image(written[2])
    # All 16 images of the run, which are fewer than the 24 of a sheet, six in a row.
    assert sheet.shape == (3 * 196, 6 * 196, 3)


def test_command_returns_what_a_run_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = experiment(folder)
    change(folder, "train", lambda tree: tree["annotations"][0].update(bbox=[1]))
    sheet = folder / "a.jpg"
    assert main(["check", str(path), "--show-augmented", str(sheet)]) == 65
    lines = capsys.readouterr().out.splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("refuse     train: "))
    assert lines[place].startswith("refuse     train: unusable: ")
    assert lines[place + 1].startswith("  /annotations/0/bbox: has 1 values")
    assert not sheet.exists()


def test_sheet_shows_the_batch(folder: Path) -> None:
    plan = make_plan(folder / "train", batch_size=2)
    batch = plan.train_batch(0, 0, 1)
    picture = batch_sheet([batch])
    assert picture.shape == (196, 2 * 196, 3)
    assert cv2.imdecode(np.frombuffer(encode_jpeg(picture), np.uint8), cv2.IMREAD_COLOR) is not None


@pytest.mark.parametrize("name", ["bccd", "coco_mini_open"])
def test_real_data_sets(name: str) -> None:
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"{name} is not here")
    splits = {
        split: SplitConfig(images="images", annotations=f"annotations/instances_{split}.json")
        for split in ("train", "val")
    }
    result = examine(DataConfig(root=str(root), **splits))
    assert result.report.exit_code == 0
    assert {one.verdict.name for one in result.report.diagnoses} <= {"NOTE", "REPAIR"}


def test_all_that_is_missing_is_said_at_once(folder: Path) -> None:
    (folder / "train" / "instances.json").unlink()
    shutil.rmtree(folder / "val" / "images")
    config = config_of(folder)
    with pytest.raises(DataError) as raised:
        read_splits(config)
    text = str(raised.value)
    assert text.startswith("2 files and folders of the data set are missing")
    assert f"data.train.annotations: annotations {folder}/train/instances.json does not" in text
    assert f"data.val.images: image folder {folder}/val/images does not exist" in text
    report = examine(config).report
    assert report.exit_code == DataError.exit_code
    assert [one.finding.count for one in report.diagnoses] == [2]
    assert len(report.diagnoses[0].finding.examples) == 3
