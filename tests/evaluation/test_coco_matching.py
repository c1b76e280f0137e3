"""The fast evaluator against the reference, the guard in front of it, and matching in parts."""

from __future__ import annotations

import numpy as np
import pytest
from coco_cases import dataset_of, detections_of, random_case

import native
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import StreamingEvaluator, evaluate
from orchestrator.evaluation.coco_matching import (
    ASPECTS,
    SIZES,
    coco_curves,
    fastest,
    mean_precision,
    mean_recall,
)
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results

BACKENDS = ["native", "pycocotools"]


@pytest.mark.parametrize("bins", [SIZES, ASPECTS], ids=["sizes", "aspects"])
@pytest.mark.parametrize("ties", [False, True])
def test_the_kernels_give_the_bits_of_pycocotools(bins, ties):
    """Without a compiler the kernels are their Python reference: slow, and just as exact."""
    for seed in range(120):
        tree, found = random_case(seed, ties=ties)
        dataset, results = dataset_of(tree), Results.of(found)
        ours = coco_curves(dataset, results, bins=bins, backend="native")
        reference = coco_curves(dataset, results, bins=bins, backend="pycocotools")
        for name, left, right in zip(ours._fields, ours, reference, strict=True):
            assert np.array_equal(left, right), (seed, name)


@pytest.mark.parametrize(
    ("compiled", "chosen"), [("native", "native"), ("reference", "pycocotools")]
)
def test_pycocotools_serves_where_nothing_is_compiled(compiled, chosen, monkeypatch):
    fastest.cache_clear()
    monkeypatch.setattr(native, "backend", lambda: compiled)
    assert fastest() == chosen
    fastest.cache_clear()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_in_any_order_give_the_bits_of_the_whole(backend):
    for seed in range(40):
        tree, found = random_case(seed, ties=True)
        dataset = dataset_of(tree)
        rng = np.random.default_rng(seed)
        evaluator = StreamingEvaluator(dataset, backend=backend)
        images = rng.permutation(found.images)
        for start in range(0, len(images), 2):
            # The first image comes with every part, as padding would.
            mine = np.unique(np.append(images[start : start + 2], images[0]))
            rows = np.isin(found.image_ids, mine)
            columns = (found.image_ids, found.labels, found.boxes, found.scores)
            evaluator.add(Detections(mine, *(column[rows] for column in columns)))
        assert evaluator.finish() == evaluate(dataset, found, backend="pycocotools")
        assert len(evaluator.detections()) == len(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_that_never_come_are_missed(backend):
    for seed in range(10):
        tree, found = random_case(seed, ties=False)
        dataset = dataset_of(tree)
        seen = found.images[:1]
        rows = found.image_ids == seen[0]
        columns = (found.image_ids, found.labels, found.boxes, found.scores)
        part = Detections(seen, *(column[rows] for column in columns))
        evaluator = StreamingEvaluator(dataset, backend=backend)
        evaluator.add(part)
        metrics = evaluator.finish()
        assert metrics == evaluate(dataset, part, backend="pycocotools")
        assert metrics.unseen_images == len(found.images) - 1


def test_a_part_that_cannot_be_scored_is_refused_when_it_comes():
    tree, _ = random_case(3, ties=False)
    evaluator = StreamingEvaluator(dataset_of(tree))
    image = tree["images"][0]["id"]
    broken = detections_of([(image, 0, [0, 0, 5, 5], float("nan"))], [image])
    with pytest.raises(DataError, match="NaN or infinite"):
        evaluator.add(broken)
    assert len(evaluator.detections()) == 0


def _one_of_each_aspect():
    boxes = {"tall": [0, 0, 20, 80], "square": [100, 0, 50, 50], "wide": [200, 0, 90, 30]}
    tree = {
        "images": [{"id": 1, "width": 400, "height": 300}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": 1,
                "bbox": [float(v) for v in box],
                "area": 1.0,
                "iscrowd": 0,
            }
            for i, box in enumerate(boxes.values(), start=1)
        ],
    }
    return dataset_of(tree), boxes


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("found", ["tall", "square", "wide"])
def test_aspects_are_scored_apart(backend, found):
    dataset, boxes = _one_of_each_aspect()
    x, y, w, h = boxes[found]
    results = Results.of(detections_of([(1, 0, [x, y, x + w, y + h], 0.5)], [1]))
    curves = coco_curves(dataset, results, bins=ASPECTS, backend=backend)
    classes = dataset.label_map
    for number, name in enumerate(ASPECTS.names[1:], start=1):
        expected = 1.0 if name == found else 0.0
        assert mean_precision(curves, classes, bin=number) == pytest.approx(expected)
        assert mean_recall(curves, classes, bin=number) == pytest.approx(expected)
    # Recall 1/3 is reached by 34 of the 101 recalls 0.00 ... 1.00.
    assert mean_precision(curves, classes) == pytest.approx(34 / 101)
