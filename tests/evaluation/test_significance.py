"""The weighted AP against pycocotools on copied images, and what the test finds and does not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from coco_cases import dataset_of, detections_of, pycocotools_numbers, random_case

from orchestrator.errors import DataError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.significance import LEAST_IMAGES, Tally, compare
from tests.support.simulated_detectors import Skill, detect, make_truth


def overall(precision):
    """AP, AP50 and AP75 of one draw; -1 where no class has boxes, as COCO has it."""
    return [
        float(np.nanmean(part)) if not np.isnan(part).all() else -1.0
        for part in (precision, precision[0], precision[5])
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_unit_weights_give_the_evaluators_numbers(ties):
    for seed in range(80):
        tree, found = random_case(seed, ties=ties)
        dataset = dataset_of(tree)
        (precision,) = Tally.of(dataset, found).precision(np.ones((1, len(dataset)), np.int64))
        metrics = evaluate(dataset, found)
        expected = [metrics.numbers[name] for name in ("AP", "AP50", "AP75")]
        assert overall(precision) == pytest.approx(expected, abs=1e-12), seed
        for one, values in zip(metrics.classes, precision.T, strict=True):
            if one.ap < 0:
                assert np.isnan(values).all()
            else:
                assert values.mean() == pytest.approx(one.ap, abs=1e-12), seed


def copied(tree, found, counts):
    """Tree and detections in which every image occurs a number of times, copies side by side."""
    images, annotations, rows = [], [], []
    order = sorted(range(len(tree["images"])), key=lambda i: tree["images"][i]["id"])
    for i in order:
        old = tree["images"][i]["id"]
        for _ in range(counts[i]):
            new = len(images) + 1
            images.append({"id": new, "width": 400, "height": 300})
            for one in tree["annotations"]:
                if one["image_id"] == old:
                    annotations.append({**one, "id": len(annotations) + 1, "image_id": new})
            rows += [
                (new, int(found.labels[j]), found.boxes[j].tolist(), float(found.scores[j]))
                for j in np.flatnonzero(found.image_ids == old)
            ]
    ids = [image["id"] for image in images]
    return {**tree, "images": images, "annotations": annotations}, detections_of(rows, ids)


@pytest.mark.parametrize("ties", [False, True])
def test_weights_are_copies_of_images_to_pycocotools(ties):
    compared = 0
    for seed in range(160 if ties else 30):
        tree, found = random_case(seed, ties=ties)
        keys = Counter(zip(found.image_ids, found.labels, found.scores, strict=True))
        if ties and max(keys.values(), default=1) > 1:
            continue  # Ties within one image and class: see Tally.precision.
        dataset = dataset_of(tree)
        draws = np.random.default_rng(seed).integers(0, 4, (3, len(dataset)))
        for counts, precision in zip(draws, Tally.of(dataset, found).precision(draws), strict=True):
            copies, copied_found = copied(tree, found, counts.tolist())
            if not len(copied_found):
                continue  # pycocotools cannot load results without entries.
            expected = pycocotools_numbers(copies, copied_found.to_coco(dataset.label_map))
            assert overall(precision) == pytest.approx(expected[:3], abs=1e-12), seed
            compared += 1
    assert compared > 50


def test_draws_in_blocks_are_the_same_bits(monkeypatch):
    tree, found = random_case(3, ties=True)
    dataset = dataset_of(tree)
    draws = np.random.default_rng(0).integers(0, 3, (50, len(dataset)))
    tally = Tally.of(dataset, found)
    whole = tally.precision(draws)
    monkeypatch.setattr("orchestrator.evaluation.significance._BLOCK", 40)
    np.testing.assert_array_equal(tally.precision(draws), whole)


def test_spread_and_interval_against_plain_resampling_with_the_evaluator():
    dataset = make_truth(np.random.default_rng(1), images=40)
    one = detect(np.random.default_rng(2), dataset, Skill())
    two = detect(np.random.default_rng(3), dataset, Skill(recall=0.9))
    effect = compare(dataset, [Tally.of(dataset, one)], [Tally.of(dataset, two)]).numbers["AP"]
    before, after = (evaluate(dataset, found).numbers["AP"] for found in (one, two))
    assert effect.before == pytest.approx(before, abs=1e-12)
    assert effect.difference == pytest.approx(after - before, abs=1e-12)
    rng = np.random.default_rng(4)
    differences = []
    for _ in range(200):
        images = rng.integers(0, 40, 40)
        ap = [evaluate(*drawn(dataset, found, images)).numbers["AP"] for found in (one, two)]
        differences.append(ap[1] - ap[0])
    # t of 39 degrees at 97.5 %, from a table: 2.0227. 200 draws know a deviation to 5 %.
    reach = 2.0227 * np.std(differences) * np.sqrt(40 / 39)
    assert (effect.high - effect.low) / 2 == pytest.approx(reach, rel=0.17)


def drawn(dataset, found, images):
    """Data set and detections of the images at ``images``, in which some occur again."""
    trees = [{"id": i + 1, "width": 640, "height": 480} for i in range(len(images))]
    annotations, rows = [], []
    for new, old in enumerate(images.tolist(), start=1):
        for row in range(dataset.offsets[old], dataset.offsets[old + 1]):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": new,
                    "category_id": dataset.label_map.ids[dataset.labels[row]],
                    "bbox": dataset.boxes_xywh[row].tolist(),
                    "area": float(dataset.areas[row]),
                    "iscrowd": 0,
                }
            )
        rows += [
            (new, int(found.labels[j]), found.boxes[j].tolist(), float(found.scores[j]))
            for j in np.flatnonzero(found.image_ids == dataset.image_ids[old])
        ]
    categories = [
        {"id": i, "name": n}
        for i, n in zip(dataset.label_map.ids, dataset.label_map.names, strict=True)
    ]
    tree = {"images": trees, "annotations": annotations, "categories": categories}
    return dataset_of(tree), detections_of(rows, [image["id"] for image in trees])


def test_equal_detections_differ_by_nothing():
    dataset = make_truth(np.random.default_rng(0), images=30)
    tally = Tally.of(dataset, detect(np.random.default_rng(1), dataset, Skill()))
    found = compare(dataset, [tally], [tally])
    effect = found.numbers["AP"]
    assert (effect.difference, effect.low, effect.high, effect.p) == (0.0, 0.0, 0.0, 1.0)
    assert found.verdict.startswith("no significant difference")


def test_five_points_are_found_and_their_sign():
    dataset = make_truth(np.random.default_rng(5), images=150)
    weak = Tally.of(dataset, detect(np.random.default_rng(6), dataset, Skill(recall=0.80)))
    strong = Tally.of(dataset, detect(np.random.default_rng(7), dataset, Skill(recall=0.88)))
    found = compare(dataset, [weak], [strong])
    effect = found.numbers["AP"]
    assert 0.03 < effect.difference < 0.08
    assert effect.significant
    assert effect.low > 0
    assert found.verdict.startswith(f"better by {effect.difference:.4f} AP")
    assert compare(dataset, [strong], [weak]).verdict.startswith("worse by")
    assert compare(dataset, [weak], [strong]) == found


def some_runs(dataset, recalls, seed):
    rng = np.random.default_rng(seed)
    return [Tally.of(dataset, detect(rng, dataset, Skill(recall=recall))) for recall in recalls]


def test_seeds_widen_the_interval_by_their_own_spread():
    dataset = make_truth(np.random.default_rng(8), images=60)
    old = some_runs(dataset, (0.80, 0.86, 0.92), 1)
    new = some_runs(dataset, (0.83, 0.89, 0.95), 2)
    together = compare(dataset, old, new)
    effect = together.numbers["AP"]
    assert (together.runs, together.seeds) == ((3, 3), 6)
    assert effect.before == pytest.approx(np.mean([one.ap() for one in old]), abs=1e-12)
    pooled = np.mean([np.var([one.ap() for one in side], ddof=1) for side in (old, new)])
    # 1.96 is the least that t can be at 97.5 %, and images add to the spread.
    assert (effect.high - effect.low) / 2 > 1.96 * np.sqrt(pooled * 2 / 3)
    single = compare(dataset, old[:1], new[:1])
    assert single.seeds == 0
    assert effect.high - effect.low > single.numbers["AP"].high - single.numbers["AP"].low
    assert not effect.significant


def test_two_seeds_of_one_experiment_are_never_told_apart():
    dataset = make_truth(np.random.default_rng(8), images=60)
    weak, strong = some_runs(dataset, (0.7, 0.95), 1)
    assert compare(dataset, [weak], [strong]).numbers["AP"].significant
    found = compare(dataset, [weak], [strong], experiments=[[weak, strong]])
    # The spread among two seeds is their difference, so t is below 1 and p above 0.3.
    assert found.numbers["AP"].p > 0.3
    assert found.seeds == 2


def test_classes_without_boxes_are_left_out_and_rare_ones_adjusted():
    dataset = make_truth(np.random.default_rng(2), images=40, classes=3)
    nobody = dataset_of(
        {
            "images": [{"id": i, "width": 640, "height": 480} for i in range(1, 41)],
            "annotations": [],
            "categories": [{"id": 1, "name": "ghost"}],
        }
    )
    weak = Tally.of(dataset, detect(np.random.default_rng(3), dataset, Skill(recall=0.5)))
    strong = Tally.of(dataset, detect(np.random.default_rng(4), dataset, Skill(recall=0.95)))
    found = compare(dataset, [weak], [strong])
    assert list(found.classes) == list(dataset.label_map.names)
    assert all(effect.significant for effect in found.classes.values())
    empty = Detections.merge([])
    with pytest.raises(DataError, match="no boxes"):
        compare(nobody, [Tally.of(nobody, empty)], [Tally.of(nobody, empty)])


def test_few_images_are_refused():
    dataset = make_truth(np.random.default_rng(0), images=LEAST_IMAGES - 1)
    tally = Tally.of(dataset, detect(np.random.default_rng(1), dataset, Skill()))
    with pytest.raises(DataError, match=f"at least {LEAST_IMAGES} are needed"):
        compare(dataset, [tally], [tally])


@pytest.mark.slow
@pytest.mark.parametrize("images", [30, 90])
def test_false_alarms_stay_within_the_stated_level(images):
    alarms = 0
    for pair in range(200):
        rng = np.random.default_rng([images, pair])
        dataset = make_truth(rng, images=images)
        one, two = (Tally.of(dataset, detect(rng, dataset, Skill())) for _ in range(2))
        found = compare(dataset, [one], [two], resamples=500, seed=pair)
        alarms += found.numbers["AP"].significant
    # A rate of 5 % gives more than 16 of 200 in 2.5 of 100 cases.
    assert alarms <= 16


@pytest.mark.slow
def test_false_alarms_stay_within_the_stated_level_where_seeds_differ():
    alarms = 0
    for pair in range(200):
        rng = np.random.default_rng([7, pair])
        dataset = make_truth(rng, images=40)
        one, two = (
            some_runs(dataset, rng.uniform(0.78, 0.92, 3), [pair, side]) for side in range(2)
        )
        found = compare(dataset, one, two, resamples=300, seed=pair)
        alarms += found.numbers["AP"].significant
    assert alarms <= 16
