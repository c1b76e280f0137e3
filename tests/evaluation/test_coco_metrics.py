"""The 12 numbers against pycocotools, published values and hand computation."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from coco_cases import (
    dataset_of,
    detections_of,
    pycocotools_at_limit,
    pycocotools_numbers,
    random_case,
)

from orchestrator.data.readers import plausibility
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import METRICS, at_limit, evaluate, write_per_class
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results, read_results

_SHARED = Path(os.environ.get("ORCHESTRATOR_SHARED", Path(__file__).parents[3] / "shared"))
ORACLE = _SHARED / "datasets" / "coco_eval_oracle"

IMAGE = {"id": 3, "width": 100, "height": 100}
CLASSES = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]


def truth(*boxes: tuple[int, int, list[float]], images=(IMAGE,), crowd=(), first_id=1):
    """A tree from (image id, category id, xywh) boxes."""
    return {
        "images": list(images),
        "categories": CLASSES,
        "annotations": [
            {
                "id": first_id + i,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": int(i in crowd),
            }
            for i, (image, category, box) in enumerate(boxes)
        ],
    }


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the COCO oracle data set is not here")
def test_published_numbers_of_the_coco_sample():
    tree = json.loads((ORACLE / "instances_val2014_100.json").read_text())
    expected = json.loads((ORACLE / "expected_metrics.json").read_text())
    dataset = dataset_of(tree)
    results = read_results(ORACLE / "instances_val2014_fakebbox100_results.json", dataset)
    scored = evaluate(dataset, results)
    assert list(scored.numbers) == list(METRICS)
    published = expected["val2014_fakebbox100"]["metrics"]
    assert scored.numbers == pytest.approx(published, abs=1e-9, rel=0)
    defined = [ap for ap in scored.per_class.values() if ap > -1]
    assert math.fsum(defined) / len(defined) == pytest.approx(published["AP"], abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_equal_to_pycocotools_on_random_sets(ties):
    compared = 0
    for seed in range(100):
        tree, found = random_case(seed, ties=ties)
        dataset = dataset_of(tree)
        if not len(found):
            continue
        numbers = evaluate(dataset, found).numbers
        expected = pycocotools_numbers(tree, found.to_coco(dataset.label_map))
        assert list(numbers.values()) == expected, seed
        compared += 1
    assert compared > 80


def crowded_case():
    """Two classes with 14 boxes each in one image, all found, and false positives between them."""
    rng = np.random.default_rng(5)
    places = [(x, y) for x in range(7) for y in range(4)]
    tree = truth(
        *((3, (1, 5)[i % 2], [14.0 * x, 25.0 * y, 12.0, 20.0]) for i, (x, y) in enumerate(places))
    )
    rows = []
    for i, (x, y) in enumerate(places):
        found = [14.0 * x, 25.0 * y, 14.0 * x + 12, 25.0 * y + 20]
        for off in (rng.uniform(0, 4), rng.uniform(8, 12)):
            rows.append((3, i % 2, [found[0] + off, *found[1:]], float(rng.uniform())))
    return tree, detections_of(rows, [3])


@pytest.mark.parametrize("limit", [1, 2, 9, 10, 11, 28, 100])
def test_numbers_at_a_limit_are_those_of_pycocotools(limit):
    cases = [random_case(seed, ties=True) for seed in range(20)]
    for tree, found in (crowded_case(), *(case for case in cases if len(case[1]))):
        dataset = dataset_of(tree)
        expected = pycocotools_at_limit(tree, found.to_coco(dataset.label_map), limit)
        numbers = at_limit(dataset, Results.of(found), limit)
        assert list(numbers) == [f"{name}@{limit}" for name in ("AP", "AP50", "AP75", "AR")]
        assert list(numbers.values()) == pytest.approx(expected, abs=1e-12)


def test_a_lower_limit_counts_fewer_detections():
    tree, found = crowded_case()
    recalls = [
        at_limit(dataset_of(tree), Results.of(found), limit)[f"AR@{limit}"]
        for limit in (1, 2, 9, 10, 11)
    ]
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[2] < recalls[-1]


@pytest.mark.slow
def test_files_whose_annotations_count_from_zero_score_like_pycocotools(tmp_path, monkeypatch):
    """500 sets with crowds, ties and empty images, read from a file as users have them."""
    # Boxes that are drawn may look as if they were meant otherwise.
    monkeypatch.setattr(plausibility, "refuse_other_units", lambda *_, **__: None)
    compared = empty = 0
    for seed in range(1000, 1500):
        tree, found = random_case(seed, ties=seed % 2 == 0)
        if not len(found) or not tree["annotations"]:
            continue
        for image in tree["images"]:
            image["file_name"] = f"{image['id']}.png"
            (tmp_path / image["file_name"]).touch()
        from_zero = [{**one, "id": one["id"] - 1} for one in tree["annotations"]]
        (tmp_path / "truth.json").write_text(json.dumps({**tree, "annotations": from_zero}))
        dataset = read_coco(tmp_path, tmp_path / "truth.json").dataset
        numbers = evaluate(dataset, found).numbers
        # Its own zero would count as a miss there, so the oracle gets ids from 1.
        expected = pycocotools_numbers(tree, found.to_coco(dataset.label_map))
        assert list(numbers.values()) == pytest.approx(expected, abs=1e-9, rel=0), seed
        with_boxes = {one["image_id"] for one in tree["annotations"]}
        empty += len(with_boxes) < len(tree["images"])
        compared += 1
    assert compared > 400
    assert empty > 100


def _take(found: Detections, rows: np.ndarray, images: np.ndarray) -> Detections:
    return Detections(
        images, found.image_ids[rows], found.labels[rows], found.boxes[rows], found.scores[rows]
    )


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_and_order_of_images_change_no_bit(workers):
    for seed in range(20):
        tree, found = random_case(seed, ties=True)
        dataset = dataset_of(tree)
        expected = evaluate(dataset, found)
        rng = np.random.default_rng(seed)
        images = rng.permutation(found.images)
        parts = []
        for rank in range(workers):
            # Every rank also repeats the first image, as the padding of a last batch would.
            mine = np.unique(np.append(images[rank::workers], images[0]))
            blocks = [np.flatnonzero(found.image_ids == i) for i in rng.permutation(mine)]
            parts.append(_take(found, np.concatenate(blocks), rng.permutation(mine)))
        rng.shuffle(parts)
        assert evaluate(dataset, Detections.merge(parts)) == expected


def test_one_perfect_detection():
    dataset = dataset_of(truth((3, 1, [10, 10, 40, 40])))
    scored = evaluate(dataset, detections_of([(3, 0, [10, 10, 50, 50], 0.9)], [3]))
    # 1600 square pixels are "medium"; no box is small or large.
    undefined = {"APs", "APl", "ARs", "ARl"}
    expected = {name: -1.0 if name in undefined else 1.0 for name in METRICS}
    assert scored.numbers == pytest.approx(expected, abs=1e-12)
    assert scored.per_class == {"cat": pytest.approx(1.0, abs=1e-12), "dog": -1.0}


def test_average_precision_by_hand():
    # Two boxes. Best first: a hit at IoU 1, a miss, a hit at IoU 0.6 (60 x 100 in 100 x 100).
    # AP at 0.50, 0.55, 0.60: precision 1 up to recall 1/2, then 2/3 -> (51 * 1 + 50 * 2/3) / 101.
    # AP at 0.65 ... 0.95: only the first hit -> 51 / 101.
    images = [{"id": 3, "width": 300, "height": 300}]
    dataset = dataset_of(
        truth((3, 1, [0, 0, 100, 100]), (3, 1, [150, 150, 100, 100]), images=images)
    )
    found = detections_of(
        [
            (3, 0, [150, 150, 210, 250], 0.5),
            (3, 0, [0, 0, 100, 100], 0.9),
            (3, 0, [0, 200, 50, 250], 0.7),
        ],
        [3],
    )
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    scored = evaluate(dataset, found)
    cat = scored.classes[0]
    assert scored.numbers["AP50"] == cat.ap50 == pytest.approx(low, abs=1e-12)
    assert scored.numbers["AP75"] == cat.ap75 == pytest.approx(high, abs=1e-12)
    assert scored.numbers["AP"] == cat.ap == pytest.approx((3 * low + 7 * high) / 10, abs=1e-12)
    # Recall: one detection finds 1 of 2 boxes; all find 2 of 2 at three thresholds of ten.
    assert scored.numbers["AR1"] == pytest.approx(0.5)
    assert scored.numbers["AR100"] == cat.ar100 == pytest.approx((3 * 1 + 7 * 0.5) / 10)
    assert (cat.name, cat.category_id, cat.boxes, cat.detections) == ("cat", 1, 2, 3)


def test_no_detections_score_zero_where_there_are_boxes():
    dataset = dataset_of(truth((3, 1, [10, 10, 40, 40])))
    scored = evaluate(dataset, detections_of([], [3]))
    defined = {"AP", "AP50", "AP75", "APm", "AR1", "AR10", "AR100", "ARm"}
    assert scored.numbers == {name: 0.0 if name in defined else -1.0 for name in METRICS}
    assert scored.per_class == {"cat": 0.0, "dog": -1.0}


def test_a_data_set_without_boxes_has_no_score():
    dataset = dataset_of(truth())
    for rows in ([], [(3, 0, [0, 0, 5, 5], 0.5)]):
        assert set(evaluate(dataset, detections_of(rows, [3])).numbers.values()) == {-1.0}


def test_annotation_id_zero_is_no_miss():
    boxes = [(3, 1, [0.0, 0.0, 20.0, 20.0]), (3, 1, [50.0, 50.0, 20.0, 20.0])]
    rows = [(3, 0, [0, 0, 20, 20], 0.9), (3, 0, [50, 50, 70, 70], 0.8)]
    found = detections_of(rows, [3])
    from_zero = truth(*boxes, first_id=0)
    dataset = dataset_of(from_zero)
    assert pycocotools_numbers(from_zero, found.to_coco(dataset.label_map))[0] < 0.51
    assert evaluate(dataset, found).numbers["AP"] == pytest.approx(1.0, abs=1e-12)


def test_a_crowd_swallows_detections_and_is_not_missed():
    dataset = dataset_of(truth((3, 1, [0, 0, 20, 20]), (3, 1, [40, 40, 60, 60]), crowd=(1,)))
    hit = (3, 0, [0, 0, 20, 20], 0.5)
    inside_crowd = [(3, 0, [50, 50, 60, 60], 0.9), (3, 0, [70, 70, 80, 80], 0.8)]
    scored = evaluate(dataset, detections_of([hit, *inside_crowd], [3]))
    assert scored.numbers["AP"] == pytest.approx(1.0, abs=1e-12)
    assert scored.classes[0].boxes == 1


def test_images_nobody_looked_at_count_as_missed():
    images = [{"id": i, "width": 100, "height": 100} for i in (3, 8, 9)]
    dataset = dataset_of(truth((3, 1, [0, 0, 20, 20]), (8, 1, [0, 0, 20, 20]), images=images))
    scored = evaluate(dataset, detections_of([(3, 0, [0, 0, 20, 20], 0.5)], [3]))
    assert scored.unseen_images == 2
    assert scored.numbers["AR100"] == pytest.approx(0.5)


def test_detections_in_an_image_without_boxes_are_false_positives():
    images = [{"id": i, "width": 100, "height": 100} for i in (3, 8)]
    dataset = dataset_of(truth((3, 1, [0, 0, 20, 20]), images=images))
    rows = [(3, 0, [0, 0, 20, 20], 0.5), (8, 0, [0, 0, 20, 20], 0.9)]
    scored = evaluate(dataset, detections_of(rows, [3, 8]))
    assert scored.numbers["AP"] == pytest.approx(0.5, abs=1e-12)


def test_label_order_need_not_be_id_order():
    tree = truth((3, 1, [0, 0, 20, 20]), (3, 5, [40, 40, 30, 30]))
    dataset = dataset_of(tree)
    turned = dataclasses.replace(
        dataset,
        label_map=dataclasses.replace(dataset.label_map, names=("dog", "cat"), ids=(5, 1)),
        labels=1 - dataset.labels,
    )
    scored = evaluate(turned, detections_of([(3, 1, [0, 0, 20, 20], 0.5)], [3]))
    assert scored.per_class == {"dog": 0.0, "cat": pytest.approx(1.0, abs=1e-12)}


NAN = float("nan")


@pytest.mark.parametrize(
    ("rows", "images", "message"),
    [
        ([(3, 0, [0, 0, 5, 5], NAN)], [3], "1 of 1 detections have a score or box that is NaN"),
        ([(3, 0, [0, 0, float("inf"), 5], 0.5)], [3], "NaN or infinite, the first in image 3"),
        (
            [(3, 0, [0, 0, 5, 5], 0.1), (4, 0, [0, 0, 5, 5], 0.1)],
            [3, 4],
            "1 of 2 detections are of images that the data set does not have, the first in image 4",
        ),
        ([(3, 2, [0, 0, 5, 5], 0.1)], [3], r"a label outside 0\.\.1, the first in image 3"),
        ([(3, -1, [0, 0, 5, 5], 0.1)], [3], r"a label outside 0\.\.1"),
        ([(3, 0, [5, 0, 0, 5], 0.1)], [3], "a box of negative width or height"),
        ([], [3, 11], "1 of 2 images are not in the data set, the first is 11"),
    ],
)
def test_what_cannot_be_scored_is_refused(rows, images, message):
    dataset = dataset_of(truth((3, 1, [10, 10, 40, 40])))
    with pytest.raises(DataError, match=message):
        evaluate(dataset, detections_of(rows, images))


def test_all_complaints_at_once():
    dataset = dataset_of(truth((3, 1, [10, 10, 40, 40])))
    rows = [(3, 9, [0, 0, 5, 5], NAN), (4, 0, [0, 0, -5, 5], 0.1)]
    with pytest.raises(DataError) as caught:
        evaluate(dataset, detections_of(rows, [3, 4]))
    assert len(str(caught.value).splitlines()) == 6


def test_prints_nothing_and_leaves_its_input_alone(capsys):
    tree, found = random_case(5, ties=True)
    dataset = dataset_of(tree)
    digest, before = dataset.digest, found.boxes.copy()
    evaluate(dataset, found)
    assert capsys.readouterr() == ("", "")
    assert dataset.digest == digest
    assert np.array_equal(found.boxes, before)


def test_per_class_file(tmp_path):
    tree = truth((3, 1, [0, 0, 20, 20]))
    tree["categories"] = [{"id": 1, "name": 'cat, "big"'}, {"id": 5, "name": "dög"}]
    dataset = dataset_of(tree)
    path = tmp_path / "eval" / "per_class.csv"
    write_per_class(path, evaluate(dataset, detections_of([(3, 0, [0, 0, 20, 20], 0.5)], [3])))
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    assert [row["class"] for row in rows] == ['cat, "big"', "dög"]
    assert float(rows[0]["AP"]) == pytest.approx(1.0)
    assert [rows[1][key] for key in ("boxes", "detections", "AP50", "AR100")] == [
        "0",
        "0",
        "-1.0",
        "-1.0",
    ]
