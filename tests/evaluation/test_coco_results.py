"""Results files: written in full, read back strictly, and the same number for everyone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from coco_cases import dataset_of, detections_of, pycocotools_numbers, random_case

from orchestrator.errors import DataError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results, read_results, write_results


def test_written_file_gives_pycocotools_the_reported_numbers(tmp_path):
    for seed in range(20):
        tree, found = random_case(seed, ties=True)
        if not len(found):
            continue
        dataset = dataset_of(tree)
        path = tmp_path / f"{seed}.json"
        write_results(path, Results.of(found), dataset.label_map)
        reported = evaluate(dataset, found).numbers
        assert pycocotools_numbers(tree, json.loads(path.read_text())) == list(reported.values())
        assert evaluate(dataset, read_results(path, dataset)).numbers == reported


def test_the_file_does_not_depend_on_the_order_of_images(tmp_path):
    tree, found = random_case(4, ties=True)
    dataset = dataset_of(tree)
    rows = np.argsort(-found.image_ids, kind="stable")
    turned = Detections(
        found.images,
        found.image_ids[rows],
        found.labels[rows],
        found.boxes[rows],
        found.scores[rows],
    )
    for name, one in (("a", found), ("b", turned)):
        write_results(tmp_path / name, Results.of(one), dataset.label_map)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert len(set(found.image_ids.tolist())) > 1


def test_data_set_ids_and_xywh_are_written(tmp_path):
    tree, _ = random_case(0, ties=False)
    dataset = dataset_of(tree)
    image = int(dataset.image_ids[0])
    found = detections_of([(image, 0, [1.5, 2, 11.5, 7], 0.25)], [image])
    write_results(tmp_path / "new" / "r.json", Results.of(found), dataset.label_map)
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == [
        {
            "image_id": image,
            "category_id": dataset.label_map.ids[0],
            "bbox": [1.5, 2.0, 10.0, 5.0],
            "score": 0.25,
        }
    ]


def test_no_detections_are_an_empty_list(tmp_path):
    tree, _ = random_case(0, ties=False)
    dataset = dataset_of(tree)
    path = tmp_path / "r.json"
    write_results(path, Results.of(detections_of([], [])), dataset.label_map)
    assert json.loads(path.read_text()) == []
    results = read_results(path, dataset)
    assert len(results) == 0
    assert results.boxes_xywh.shape == (0, 4)


GOOD = {"image_id": 3, "category_id": 5, "bbox": [0, 0, 5, 5], "score": 0.5}


def _dataset():
    return dataset_of(
        {
            "images": [{"id": 3, "width": 9, "height": 9}],
            "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
            "annotations": [],
        }
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, "/1/image_id: is 4, no image of the data set"),
        ({"image_id": "3"}, "/1/image_id: is a string"),
        ({"category_id": 0}, "/1/category_id: is 0, but the data set's categories are 5, 9"),
        ({"bbox": [0, 0, 5]}, "/1/bbox: has 3 values"),
        ({"bbox": None}, "/1/bbox: is null"),
        ({"bbox": [0, 0, -1, 5]}, "/1/bbox: has a negative width or height"),
        ({"bbox": [0, 0, float("nan"), 5]}, "/1/bbox: width is nan, expected a finite number"),
        ({"score": float("nan")}, r"/1/score: is a number \(nan\), expected a finite number"),
        ({"score": float("-inf")}, "/1/score: .*expected a finite number"),
        ({"score": "0.5"}, "/1/score: is a string"),
        ({"score": True}, "/1/score: is a boolean"),
        ({"score": 10**200}, "/1/score: is an integer"),
    ],
)
def test_malformed_entries_are_refused_with_their_place(tmp_path, change, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([GOOD, {**GOOD, **change}]))
    with pytest.raises(DataError, match=message):
        read_results(path, _dataset())


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([0.1, 0.2, 0.3, 0.4], "12 of 12 boxes lie within the first pixel"),
        ([100, 90, 220, 210], "12 of 12 boxes .* would fit as x1, y1, x2, y2"),
        ([10, 10, 10.5, 20], None),
        ([-200, 10, 10.5, 20], None),  # A detector may put boxes anywhere.
    ],
)
def test_boxes_in_other_units_are_refused(tmp_path, box, says):
    dataset = dataset_of(
        {
            "images": [{"id": 3, "width": 240, "height": 220}],
            "categories": [{"id": 5, "name": "cat"}],
            "annotations": [],
        }
    )
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{**GOOD, "bbox": box}] * 12))
    if says is None:
        assert read_results(path, dataset).boxes_xywh.tolist() == [box] * 12
        return
    with pytest.raises(DataError, match=f"(?s){says}|the first.*{says}") as caught:
        read_results(path, dataset)
    assert "at /0/bbox" in str(caught.value)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_missing_keys_are_refused(tmp_path, key):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{k: v for k, v in GOOD.items() if k != key}]))
    with pytest.raises(DataError, match=f"/0/{key}: .*(missing|null)"):
        read_results(path, _dataset())


def test_all_malformed_entries_are_listed(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([7, GOOD, {**GOOD, "score": None}, {**GOOD, "image_id": 1}]))
    with pytest.raises(DataError) as caught:
        read_results(path, _dataset())
    text = str(caught.value)
    assert "3 problems" in text
    for pointer in ("/0: is an integer", "/2/score", "/3/image_id"):
        assert pointer in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1:1: not valid JSON"),
        (b'[{"image_id": 3,', "not valid JSON"),
        (b'{"annotations": []}', "is this an annotation file"),
        (b"\xff\xfe\xff", "cannot be read|not UTF-8|not valid JSON"),
        (b"[" * 200_000, "cannot be read as JSON"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_results(path, _dataset())
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"r\.json: cannot be read \(No such file"):
        read_results(tmp_path / "r.json", _dataset())
