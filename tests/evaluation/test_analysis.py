"""Matching, kinds of error, confusion and calibration: by hand and against hotcoco's TIDE."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from coco_cases import dataset_of, detections_of, random_case

from orchestrator.evaluation.analysis import ClassAtScore, analyse, calibrate, confuse
from orchestrator.evaluation.breakdown import break_down
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.matching import match
from orchestrator.evaluation.results import Results


def case(seed: int, *, crowd: bool = True, ties: bool = True):
    tree, found = random_case(seed, ties=ties)
    if not crowd:
        tree["annotations"] = [{**one, "iscrowd": 0} for one in tree["annotations"]]
    return tree, dataset_of(tree), found


def test_ap_of_the_matching_is_cocos_ap50():
    for seed in range(60):
        _, dataset, found = case(seed)
        ap = break_down(dataset, match(dataset, Results.of(found))).ap
        assert ap == pytest.approx(evaluate(dataset, found).numbers["AP50"], abs=1e-12), seed


def test_kinds_and_costs_are_those_of_an_independent_tide():
    hotcoco = pytest.importorskip("hotcoco", reason="hotcoco is not installed")
    names = {
        "classification": "Cls",
        "localisation": "Loc",
        "both": "Both",
        "duplicate": "Dupe",
        "background": "Bkg",
        "missed": "Miss",
    }
    for seed in range(60):
        # Without crowds, overlaps with which hotcoco counts as overlaps with boxes, and without
        # equal scores, whose order between images is anybody's choice.
        tree, dataset, found = case(seed, crowd=False, ties=False)
        if not len(found) or not tree["annotations"]:
            continue
        truth = hotcoco.COCO(tree)
        evaluation = hotcoco.COCOeval(
            truth, truth.load_res(found.to_coco(dataset.label_map)), "bbox"
        )
        evaluation.evaluate()
        theirs = evaluation.tide_errors()
        ours = break_down(dataset, match(dataset, Results.of(found)))
        for name, key in names.items():
            assert ours.counts[name] == theirs["counts"][key], (seed, name)
            assert ours.costs[name] == pytest.approx(theirs["delta_ap"][key], abs=1e-9), seed


BOXES = [[0, 0, 100, 100], [200, 0, 100, 100], [0, 200, 100, 100], [200, 200, 100, 100]]


def four_boxes():
    """Four boxes of class 0, the last one of class 1."""
    return dataset_of(
        {
            "images": [{"id": 4, "width": 400, "height": 400}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": 4,
                    "category_id": 1 + (i == 3),
                    "bbox": [float(v) for v in box],
                    "area": 1e4,
                    "iscrowd": 0,
                }
                for i, box in enumerate(BOXES)
            ],
        }
    )


#: One of each kind: a hit, its duplicate, a shifted box (IoU 1/3), a dog called cat, a shifted dog
#: called cat (IoU 1/3), and nothing at all; the third cat is missed.
ONE_OF_EACH = [
    (4, 0, [0, 0, 100, 100], 0.9),
    (4, 0, [0, 0, 100, 90], 0.8),
    (4, 0, [250, 0, 350, 100], 0.7),
    (4, 0, [200, 200, 300, 300], 0.6),
    (4, 0, [250, 200, 350, 300], 0.5),
    (4, 0, [120, 120, 180, 180], 0.4),
]


def test_one_error_of_each_kind():
    dataset = four_boxes()
    errors = break_down(dataset, match(dataset, Results.of(detections_of(ONE_OF_EACH, [4]))))
    assert errors.counts == dict.fromkeys(errors.counts, 1)
    # One hit of three cats, ranked first: precision 1 at the 34 recalls up to 1/3. Dogs: none.
    base = 34 / 101 / 2
    assert errors.ap == pytest.approx(base)
    # Mended, the dog called cat becomes the only dog detection, a hit; a rank is freed below.
    assert errors.costs["classification"] == pytest.approx(1 / 2)
    # Mended, the third detection is a hit at rank 3: precision 2/3 at the next 33 recalls.
    assert errors.costs["localisation"] == pytest.approx(33 * 2 / 3 / 101 / 2)
    # Without the missed cat, recall 1/2 is reached: 51 recalls instead of 34.
    assert errors.costs["missed"] == pytest.approx((51 - 34) / 101 / 2)
    assert errors.costs["duplicate"] == errors.costs["background"] == pytest.approx(0)


def test_confusion_by_hand():
    dataset = four_boxes()
    results = Results.of(detections_of(ONE_OF_EACH, [4]))
    # Rows cat, dog, background; columns cat, dog, missed. Above 0.55 four detections take part:
    # a hit, two on background, a dog called cat; two cats are missed.
    assert confuse(dataset, results, threshold=0.55).counts.tolist() == [
        [1, 0, 2],
        [1, 0, 0],
        [2, 0, 0],
    ]


def test_confusion_counts_every_box_once():
    for seed in range(30):
        _, dataset, found = case(seed)
        counts = confuse(dataset, Results.of(found), threshold=0.0).counts
        boxes = np.bincount(dataset.labels[~dataset.crowd], minlength=len(dataset.label_map))
        assert counts[:-1].sum(axis=1).tolist() == boxes.tolist(), seed


def test_confusion_counts_the_best_hundred_of_each_class():
    """As all other numbers do: fifty boxes each of three classes are within it, 101 of one not."""
    places = [[20.0 * (i % 20), 20.0 * (i // 20)] for i in range(251)]
    labels = [0] * 50 + [1] * 50 + [2] * 50 + [3] * 101
    dataset = dataset_of(
        {
            "images": [{"id": 4, "width": 400, "height": 400}],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate("abcd")],
            "annotations": [
                {
                    "id": i + 1,
                    "image_id": 4,
                    "category_id": label + 1,
                    "bbox": [x, y, 10.0, 10.0],
                    "area": 100.0,
                    "iscrowd": 0,
                }
                for i, (label, (x, y)) in enumerate(zip(labels, places, strict=True))
            ],
        }
    )
    rows = [
        (4, label, [x, y, x + 10, y + 10], 0.9)
        for label, (x, y) in zip(labels, places, strict=True)
    ]
    counts = confuse(dataset, Results.of(detections_of(rows, [4])), threshold=0.5).counts
    assert counts.diagonal().tolist() == [50, 50, 50, 100, 0]
    assert counts[:, -1].tolist() == [0, 0, 0, 1, 0]


def test_calibration_by_hand():
    dataset = four_boxes()
    rows = [
        (4, 0, [0, 0, 100, 100], 0.95),
        (4, 0, [200, 0, 300, 100], 0.91),
        (4, 0, [120, 120, 180, 180], 0.99),
        (4, 0, [120, 120, 180, 180], 0.15),
    ]
    result = calibrate(match(dataset, Results.of(detections_of(rows, [4]))))
    assert result.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 3]
    assert result.score[9] == pytest.approx(0.95, abs=1e-6)
    assert result.precision[9] == pytest.approx(2 / 3)
    expected = (3 * abs(0.95 - 2 / 3) + 0.15) / 4
    assert result.error == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("factor", "shift", "calibrated"),
    [
        (1, 0, True),
        (0.5, 0.5, True),
        (100, 0, False),
        (1, -0.5, False),
        (1, -2, False),
        (3, 0, False),
    ],
)
def test_scores_that_are_no_probabilities_are_not_calibrated(factor, shift, calibrated):
    _, dataset, found = case(4)
    results = Results.of(found)
    other = dataclasses.replace(results, scores=results.scores * factor + shift)
    analysis = analyse(dataset, other)
    assert analysis.metrics.numbers == evaluate(dataset, results).numbers
    assert (analysis.calibration is not None) == calibrated
    assert (analysis.to_json()["calibration"] is not None) == calibrated
    assert ("divide them by 100" in analysis.score_note) != calibrated
    nothing = detections_of([], dataset.image_ids.tolist())
    assert analyse(dataset, nothing).score_note == ""


def test_precision_recall_and_f1_of_a_class():
    one = ClassAtScore("cell", true_positives=6, false_positives=2, missed=4)
    assert one.precision == 6 / 8
    assert one.recall == 6 / 10
    assert one.f1 == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    silent = ClassAtScore("plate", true_positives=0, false_positives=0, missed=3)
    assert (silent.precision, silent.recall, silent.f1) == (-1.0, 0.0, 0.0)
    absent = ClassAtScore("none", 0, 0, 0)
    assert (absent.precision, absent.recall, absent.f1) == (-1.0, -1.0, -1.0)


def test_counts_at_the_working_score_add_up():
    for seed in range(40):
        _, dataset, found = case(seed)
        analysis = analyse(dataset, found)
        boxes = {one.name: one.boxes for one in analysis.metrics.classes}
        for one in analysis.at_working_score:
            assert one.true_positives + one.missed == boxes[one.name]
        if not len(found):
            continue
        true = sum(one.true_positives for one in analysis.at_working_score)
        false = sum(one.false_positives for one in analysis.at_working_score)
        f1 = 2 * true / (true + false + sum(boxes.values()))
        # No other threshold does better.
        matches = match(dataset, Results.of(found))
        for score in np.unique(matches.score).tolist():
            counted = (matches.score >= score) & ~matches.ignored
            other = 2 * matches.true_positive[counted].sum()
            assert other / (counted.sum() + sum(boxes.values())) <= f1 + 1e-12


def test_working_score_and_worst_images():
    dataset = four_boxes()
    analysis = analyse(dataset, detections_of(ONE_OF_EACH, [4]))
    # F1 is 2 * 1 / (1 + 4) at the first detection and falls with every other.
    assert analysis.working_score == pytest.approx(0.9)
    assert [(one.missed, one.false_positives) for one in analysis.worst] == [(3, 0)]


@pytest.mark.parametrize("rows", [[], ONE_OF_EACH], ids=["nothing", "something"])
def test_the_tree_is_plain_json(rows):
    tree = analyse(four_boxes(), detections_of(rows, [4])).to_json()
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    assert len(tree["curves"]["classes"]["cat"]) == 101
    assert tree["splits"]["size"]["all"]["AP"] == tree["metrics"]["AP"]
    assert tree["splits"]["aspect"]["all"]["AP"] == tree["metrics"]["AP"]


def test_a_data_set_without_boxes_can_be_analysed():
    dataset = dataset_of(
        {
            "images": [{"id": 4, "width": 40, "height": 40}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [],
        }
    )
    analysis = analyse(dataset, detections_of([(4, 0, [0, 0, 5, 5], 0.5)], [4]))
    assert analysis.errors.ap == -1
    assert analysis.curves() == {"all": {}, "classes": {}}
