from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from orchestrator.data.findings import ReadResult
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import DataError, SecurityError
from tests.support.data_cases import TREE, textured, write_image

Read = Callable[[Any], ReadResult]

BOX = TREE["annotations"][0]
IMAGE = TREE["images"][0]


def changed(key: str, *, index: int = 0, **values: Any) -> dict[str, Any]:
    """The valid tree with some values of one entry set, or removed where None."""
    tree = copy.deepcopy(TREE)
    for name, value in values.items():
        if value is None:
            del tree[key][index][name]
        else:
            tree[key][index][name] = value
    return tree


def with_boxes(*boxes: list[float]) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    tree["annotations"] = [{**BOX, "id": i + 1, "bbox": box} for i, box in enumerate(boxes)]
    return tree


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in TREE.items() if name != key}


def test_reads_what_is_there(read_tree: Read) -> None:
    tree = copy.deepcopy(TREE)
    tree["images"].append({"id": 2, "file_name": "b.jpg", "width": 20, "height": 10})
    tree["annotations"].append({**BOX, "id": 0, "image_id": 2, "category_id": 3})
    tree["annotations"].append({**BOX, "id": 9, "bbox": [3, 4, 5.5, 6], "area": 21.5})
    result = read_tree(tree)
    data = result.dataset
    assert result.findings == ()
    assert data.label_map.names == ("three", "seven")
    assert data.label_map.ids == (3, 7)
    assert data.files == ("a.jpg", "b.jpg")
    assert data.image_ids.tolist() == [5, 2]
    assert data.widths.tolist() == [40, 20]
    assert data.heights.tolist() == [30, 10]
    assert data.offsets.tolist() == [0, 2, 3]
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 8], [3, 4, 5.5, 6], [1, 2, 10, 8]]
    assert data.labels.tolist() == [1, 1, 0]
    assert data.areas.tolist() == [80, 21.5, 80]
    assert not data.crowd.any()
    boxes, labels = data.training_boxes(0)
    assert boxes.tolist() == [[1, 2, 11, 10], [3, 4, 8.5, 10]]
    assert labels.tolist() == [1, 1]


def test_image_without_annotations_is_kept(read_tree: Read) -> None:
    data = read_tree({**TREE, "annotations": []}).dataset
    assert len(data) == 1
    assert data.offsets.tolist() == [0, 0]
    assert data.training_boxes(0)[0].shape == (0, 4)


def test_crowd_is_flagged_and_its_mask_ignored(read_tree: Read) -> None:
    mask = {"counts": [0, 10, 20], "size": [30, 40]}
    data = read_tree(changed("annotations", iscrowd=1, segmentation=mask)).dataset
    assert data.crowd.tolist() == [True]
    assert len(data.training_boxes(0)[0]) == 0
    assert len(data.training_boxes(0, with_crowd=True)[0]) == 1


def test_missing_area_and_crowd_flag_are_set_and_counted(read_tree: Read) -> None:
    result = read_tree(changed("annotations", area=None, iscrowd=None))
    assert result.dataset.areas.tolist() == [80]
    assert result.dataset.crowd.tolist() == [False]
    assert {finding.kind: finding.count for finding in result.findings} == {
        "missing_area": 1,
        "missing_iscrowd": 1,
    }


def test_untidy_boxes_are_dropped_or_clipped_and_counted(read_tree: Read) -> None:
    result = read_tree(
        with_boxes(
            [0, 0, 40, 30],  # exactly the image
            [5, 5, 0, 4],  # no width
            [5, 5, 4, 0],  # no height
            [5, 5, 1e-20, 4],  # no width that a coordinate could show
            [9, 9, -4, 4],  # negative width
            [40, 5, 4, 4],  # right of the image
            [5, -9, 4, 4],  # above it
            [35, 25, 10, 10],  # over its corner
            [-3, 5, 6, 4],  # over its left edge
        )
    )
    assert {finding.kind: finding.count for finding in result.findings} == {
        "zero_size_box": 3,
        "negative_size_box": 1,
        "outside_box": 2,
        "over_edge_box": 2,
        "area_above_box": 4,
    }
    by_kind = {finding.kind: finding for finding in result.findings}
    assert by_kind["outside_box"].examples == ("/annotations/5/bbox", "/annotations/6/bbox")
    assert str(by_kind["negative_size_box"]) == (
        "negative_size_box: 1 dropped (/annotations/4/bbox)"
    )
    # Evaluation scores against boxes as annotated, training sees them clipped.
    assert result.dataset.boxes_xywh.tolist() == [
        [0, 0, 40, 30],
        [35, 25, 10, 10],
        [-3, 5, 6, 4],
    ]
    boxes, _ = result.dataset.training_boxes(0)
    assert boxes.tolist() == [[0, 0, 40, 30], [35, 25, 40, 30], [0, 5, 3, 9]]


HUGE = 10**400

MALFORMED = {
    "top-level list": ([TREE], r"top level is a list, expected an object"),
    "top-level string": ('"text"', r"top level is a string"),
    "no images": (without("images"), r"/images: missing, expected a list"),
    "no annotations": (without("annotations"), r"/annotations: missing"),
    "no categories": (without("categories"), r"/categories: missing"),
    "images is null": ({**TREE, "images": None}, r"/images: is null, expected a list"),
    "images is empty": ({**TREE, "images": []}, r"/images: is empty"),
    "categories is empty": ({**TREE, "categories": []}, r"/categories: is empty"),
    "annotations is an object": ({**TREE, "annotations": {}}, r"/annotations: is an object"),
    "image is a list": ({**TREE, "images": [[], IMAGE]}, r"/images/0: is a list, expected an obj"),
    "annotation is null": ({**TREE, "annotations": [BOX, None]}, r"/annotations/1: is null"),
    "duplicate image id": (
        {**TREE, "images": [IMAGE, {**IMAGE, "file_name": "b.jpg"}]},
        r"/images/1/id: 5 is already the id of /images/0",
    ),
    "duplicate annotation id": (
        {**TREE, "annotations": [BOX, BOX]},
        r"/annotations/1/id: 1 is already the id of /annotations/0",
    ),
    "duplicate category id": (
        changed("categories", id=3),
        r"/categories/1/id: 3 is already the id of /categories/0",
    ),
    "duplicate category name": (
        changed("categories", name="three"),
        r"/categories/1/name: 'three' is already the name of /categories/0",
    ),
    "unknown image": (
        changed("annotations", image_id=6),
        r"/annotations/0/image_id: is 6, but no image has this id",
    ),
    "unknown category": (
        changed("annotations", category_id=1),
        r"/annotations/0/category_id: is 1, but the categories are 3, 7",
    ),
    "string image id": (changed("images", id="5"), r"/images/0/id: is a string \('5'\), expected"),
    "string reference": (changed("annotations", image_id="5"), r"/annotations/0/image_id: is a st"),
    "fractional id": (changed("annotations", id=1.0), r"/annotations/0/id: is a number \(1.0\)"),
    "boolean id": (changed("annotations", id=True), r"/annotations/0/id: is a boolean \(True\)"),
    "id beyond 64 bits": (changed("annotations", id=1 << 63), r"allowed is a 64-bit integer"),
    "missing id": (changed("annotations", id=None), r"/annotations/0/id: missing"),
    "missing image id": (changed("annotations", image_id=None), r"/annotations/0/image_id: miss"),
    "missing category id": (changed("annotations", category_id=None), r"category_id: missing"),
    "missing box": (changed("annotations", bbox=None), r"/annotations/0/bbox: missing, expected"),
    "null box": (json.dumps(TREE).replace("[1, 2, 10, 8]", "null"), r"/annotations/0/bbox: is nul"),
    "three numbers": (with_boxes([1, 2, 3]), r"/annotations/0/bbox: has 3 values, expected"),
    "five numbers": (with_boxes([1, 2, 3, 4, 5]), r"/annotations/0/bbox: has 5 values"),
    "nested box": (with_boxes([[1, 2, 3, 4]]), r"/annotations/0/bbox: has 1 values"),
    "text in box": (with_boxes([1, "2", 3, 4]), r"bbox: y is a string \('2'\), expected a number"),
    "boolean in box": (with_boxes([1, 2, 3, True]), r"bbox: height is a boolean"),
    "NaN in box": (with_boxes([1, 2, float("nan"), 4]), r"bbox: width is nan, expected a finite"),
    "infinity in box": (with_boxes([float("-inf"), 2, 3, 4]), r"bbox: x is -inf, expected a fini"),
    "huge number in box": (with_boxes([1, 2, 3, HUGE]), r"bbox: height is 1000000+, expected"),
    "negative area": (changed("annotations", area=-1), r"/annotations/0/area: is -1, expected a"),
    "NaN area": (changed("annotations", area=float("nan")), r"/annotations/0/area: is nan"),
    "text area": (changed("annotations", area="80"), r"/annotations/0/area: is a string"),
    "crowd is two": (changed("annotations", iscrowd=2), r"iscrowd: is 2, expected 0 or 1"),
    "crowd is text": (changed("annotations", iscrowd="no"), r"iscrowd: is a string \('no'\)"),
    "missing file name": (changed("images", file_name=None), r"/images/0/file_name: missing"),
    "empty file name": (changed("images", file_name=""), r"/images/0/file_name: is empty"),
    "file name is a number": (changed("images", file_name=3), r"/images/0/file_name: is an integ"),
    "missing width": (changed("images", width=None), r"/images/0/width: missing"),
    "zero height": (changed("images", height=0), r"/images/0/height: is 0, allowed is 1\.\."),
    "width is huge": (changed("images", width=1 << 31), r"/images/0/width: is 2147483648, allowed"),
    "height is a fraction": (changed("images", height=30.0), r"/images/0/height: is a number"),
    "missing category name": (changed("categories", name=None), r"/categories/0/name: missing"),
    "category id is text": (changed("categories", id="7"), r"/categories/0/id: is a string"),
    "empty file": (b"", r":1:1: not valid JSON .*; the file ends too early"),
    "truncated": (json.dumps(TREE)[:150], r":1:\d+: not valid JSON"),
    "truncated in a string": (json.dumps(TREE)[:30], r"the file ends too early, copy it again"),
    # Python 3.13 names the comma, others what follows it.
    "trailing comma": ('{"images": [],\n}', r":(2:1|1:14): not valid JSON"),
    "comment": ("// made by hand\n{}", r":1:1: not valid JSON"),
    "byte order mark": (b"\xef\xbb\xbf" + json.dumps(TREE).encode(), r"byte order mark"),
    "latin-1": ('{"images": "é"}'.encode("latin-1"), r"byte 12 is not UTF-8"),
    "utf-16": (json.dumps(TREE).encode("utf-16"), r"byte 0 is not UTF-8"),
    "deeply nested": ("[" * 100_000, r"cannot be read as JSON|not valid JSON"),
    "number of many digits": ('{"images": ' + "1" * 5000 + "}", r"cannot be read as JSON"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_is_refused_with_its_place(case: str, read_tree: Read) -> None:
    tree, text = MALFORMED[case]
    with pytest.raises(DataError, match=text) as caught:
        read_tree(tree)
    assert "instances.json" in str(caught.value)


def test_all_problems_are_listed_at_once(read_tree: Read) -> None:
    tree = copy.deepcopy(TREE)
    tree["images"].append({"id": 5, "file_name": "b.jpg", "width": 0, "height": 10})
    tree["annotations"] = [
        {**BOX, "bbox": [1, 2, 3]},
        {**BOX, "image_id": 8},
        {**BOX, "id": 3, "category_id": None},
        "text",
        {**BOX, "id": 4, "area": float("inf")},
    ]
    with pytest.raises(DataError) as caught:
        read_tree(tree)
    first, *lines, last = str(caught.value).splitlines()
    assert first.endswith("instances.json: 8 problems")
    assert last == "correct these entries in the file and run again"
    assert {line.split(": ")[0].strip() for line in lines} == {
        "/images/1/id",
        "/images/1/width",
        "/annotations/0/bbox",
        "/annotations/1/image_id",
        "/annotations/1/id",
        "/annotations/2/category_id",
        "/annotations/3",
        "/annotations/4/area",
    }


def test_pointers_count_entries_of_the_file(read_tree: Read) -> None:
    tree = {**TREE, "annotations": ["text", {**BOX, "bbox": [1]}]}
    with pytest.raises(DataError, match=r"/annotations/1/bbox: has 1 values"):
        read_tree(tree)


def test_only_the_first_hundred_problems_are_listed(read_tree: Read) -> None:
    with pytest.raises(DataError) as caught:
        read_tree(with_boxes(*[[1, 2, 3]] * 130))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("130 problems")
    assert len([line for line in lines if "has 3 values" in line]) == 100
    assert lines[-2] == "  ... and 30 more"


@pytest.mark.parametrize("spelt", ["folder", "link to it", "with dots"])
def test_absolute_names_below_the_folder_are_names_of_its_files(tmp_path: Path, spelt: str) -> None:
    images = tmp_path / "images"
    write_image(images / "sub" / "a.jpg", textured(30, 40, 1))
    (tmp_path / "link").symlink_to(images)
    folder = {
        "folder": images,
        "link to it": tmp_path / "link",
        "with dots": tmp_path / "images" / "sub" / "..",
    }[spelt]
    (tmp_path / "a.json").write_text(json.dumps(escape(f"{folder}/sub/a.jpg")))
    read = read_coco(images, tmp_path / "a.json")
    assert (list(read.dataset.files), read.findings) == (["sub/a.jpg"], ())


def test_a_file_named_relative_and_absolute_is_listed_twice(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg", textured(30, 40, 1))
    tree = escape(f"{tmp_path}/images/a.jpg")
    tree["images"].append({**tree["images"][0], "id": 6, "file_name": "a.jpg"})
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="/images/1/file_name"):
        read_coco(tmp_path / "images", tmp_path / "a.json")


def test_absolute_names_of_another_machine_are_compared_with_the_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg", textured(30, 40, 1))
    (tmp_path / "a.json").write_text(json.dumps(escape("/data/upload/1/a.jpg")))
    with pytest.raises(SecurityError) as caught:
        read_coco(tmp_path / "images", tmp_path / "a.json")
    assert "'/data/upload/1/a.jpg' is absolute; a.jpg is there" in str(caught.value)
    assert "follow_links" not in str(caught.value)
    assert "correct them in the annotations" in str(caught.value)


@pytest.mark.parametrize("name", ["sub/", "sub/..", ".", ""])
def test_an_absolute_name_of_a_folder_is_no_image(tmp_path: Path, name: str) -> None:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    (tmp_path / "a.json").write_text(json.dumps(escape(f"{tmp_path}/images/{name}")))
    with pytest.raises((SecurityError, DataError)):
        read_coco(tmp_path / "images", tmp_path / "a.json")


def test_broken_categories_do_not_blame_every_annotation(read_tree: Read) -> None:
    with pytest.raises(DataError) as caught:
        read_tree(changed("categories", id=None))
    assert "category_id" not in str(caught.value)


def escape(name: str) -> dict[str, Any]:
    return changed("images", file_name=name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/etc/passwd", "'/etc/passwd' is absolute"),
        ("../outside.jpg", "'../outside.jpg' leads to"),
        ("sub/../../outside.jpg", "leads to"),
        ("..", "is no file name"),
        ("link.jpg", "is a link to"),
        ("away/a.jpg", "leads to"),
        ("a\0.jpg", "is no file name"),
    ],
)
def test_file_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str, text: str) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (tmp_path / "outside.jpg").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.jpg").touch()
    (images / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (images / "away").symlink_to(tmp_path / "other")
    (tmp_path / "a.json").write_text(json.dumps(escape(name)))
    with pytest.raises(SecurityError, match="of the image folder") as caught:
        read_coco(images, tmp_path / "a.json")
    assert text in str(caught.value)
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("name", ["a.jpg", "sub/a.jpg", "sub/../a.jpg", "inner.jpg", "back/a.jpg"])
def test_file_name_that_stays_in_the_folder_is_fine(tmp_path: Path, name: str) -> None:
    images = tmp_path / "real"
    (images / "sub").mkdir(parents=True)
    (images / "a.jpg").touch()
    (images / "sub" / "a.jpg").touch()
    (images / "inner.jpg").symlink_to("sub/a.jpg")
    (images / "back").symlink_to(images / "sub")
    # The folder itself may be reached through a link.
    (tmp_path / "images").symlink_to(images)
    (tmp_path / "a.json").write_text(json.dumps(escape(name)))
    result = read_coco(tmp_path / "images", tmp_path / "a.json")
    assert result.findings == ()
    assert result.dataset.path(0).exists()


def test_missing_image_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "images" / "loop.jpg").symlink_to("loop.jpg")
    names = ["a.jpg", "gone.jpg", "no/folder.jpg", "loop.jpg"]
    tree = {**TREE, "images": [{**IMAGE, "id": 5 + i, "file_name": n} for i, n in enumerate(names)]}
    (tmp_path / "a.json").write_text(json.dumps(tree))
    (finding,) = read_coco(tmp_path / "images", tmp_path / "a.json").findings
    assert finding.kind == "missing_image"
    assert finding.examples == ("gone.jpg", "no/folder.jpg", "loop.jpg")


def test_folder_without_any_of_the_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "a.json").write_text(json.dumps(TREE))
    with pytest.raises(DataError, match=r"none of the 1 images .* first is a\.jpg\npoint data\.ro"):
        read_coco(tmp_path / "images", tmp_path / "a.json")


def test_missing_file_or_folder_names_the_nearest_and_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "instances_train.json").write_text(json.dumps(TREE))
    with pytest.raises(DataError) as caught:
        read_coco(tmp_path / "images", tmp_path / "instance_train.json")
    assert "instance_train.json does not exist; did you mean" in str(caught.value)
    assert "data.root=FOLDER" in str(caught.value)
    with pytest.raises(DataError, match=r"image folder .*imges does not exist; did you mean"):
        read_coco(tmp_path / "imges", tmp_path / "instances_train.json")
    with pytest.raises(DataError, match="is not the right kind of file"):
        read_coco(tmp_path / "instances_train.json", tmp_path / "instances_train.json")


@pytest.mark.parametrize(
    ("name", "split", "images", "boxes", "classes"),
    [
        ("bccd", "train", 205, 2804, 3),
        ("bccd", "val", 87, 1137, 3),
        ("coco_mini_open", "train", 92, 829, 80),
        ("coco_mini_open", "val", 66, 560, 80),
    ],
)
def test_real_data_sets(name: str, split: str, images: int, boxes: int, classes: int) -> None:
    folder = Path(__file__).parents[4] / "shared" / "datasets" / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here")
    path = folder / "annotations" / f"instances_{split}.json"
    data = read_coco(folder / "images", path).dataset
    assert (len(data), len(data.labels), len(data.label_map)) == (images, boxes, classes)
    oracle = COCO(str(path))
    for index, image_id in enumerate(data.image_ids.tolist()):
        wanted = oracle.loadAnns(oracle.getAnnIds(imgIds=[image_id]))
        rows = data.boxes_of(index)
        assert np.array_equal(
            data.boxes_xywh[rows], np.array([a["bbox"] for a in wanted]).reshape(-1, 4)
        )
        ids = [data.label_map.ids[label] for label in data.labels[rows]]
        assert ids == [a["category_id"] for a in wanted]
        assert data.areas[rows].tolist() == [a["area"] for a in wanted]
        assert data.crowd[rows].tolist() == [bool(a["iscrowd"]) for a in wanted]
