"""The fast evaluator against the reference, the guard in front of it, and matching in parts."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
from coco_cases import dataset_of, detections_of, random_case

import native
from orchestrator.errors import DataError
from orchestrator.evaluation import backends
from orchestrator.evaluation.backends import fastest, score
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.grading import ASPECTS, SIZES
from orchestrator.evaluation.results import Results
from orchestrator.evaluation.streaming import StreamingEvaluator

try:
    import hotcoco  # noqa: F401
except ImportError:
    HOTCOCO = False
else:
    HOTCOCO = True

COMPILED = native.backend() == "native"
needs_hotcoco = pytest.mark.skipif(not HOTCOCO, reason="hotcoco is not installed")
needs_kernels = pytest.mark.skipif(not COMPILED, reason="the kernels are not compiled")
FAST = [
    # Without a compiler this is the Python reference of the kernels: slow, and just as exact.
    "native",
    pytest.param("hotcoco", marks=needs_hotcoco),
]
BACKENDS = [*FAST, "pycocotools"]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bins", [SIZES, ASPECTS], ids=["sizes", "aspects"])
@pytest.mark.parametrize("ties", [False, True])
def test_every_backend_gives_the_bits_of_the_reference(backend, bins, ties):
    for seed in range(120):
        tree, found = random_case(seed, ties=ties)
        dataset, results = dataset_of(tree), Results.of(found)
        fast = score(dataset, results, bins=bins, backend=backend)
        reference = score(dataset, results, bins=bins, backend="pycocotools")
        for field in dataclasses.fields(fast):
            left, right = getattr(fast, field.name), getattr(reference, field.name)
            assert np.array_equal(left, right), (seed, field.name)


@pytest.fixture
def choice():
    """:func:`fastest`, which has chosen nothing yet, before or after."""
    fastest.cache_clear()
    yield fastest
    fastest.cache_clear()


@needs_kernels
def test_the_kernels_are_trusted_after_their_self_test(choice):
    assert choice() == "native"


@needs_hotcoco
def test_hotcoco_is_trusted_after_its_self_test(choice, monkeypatch):
    monkeypatch.setattr(native, "backend", lambda: "reference")
    assert choice() == "hotcoco"


@pytest.mark.skipif(not (COMPILED or HOTCOCO), reason="there is no fast backend here")
@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_a_backend_that_fails_its_self_test_is_not_used(choice, monkeypatch, caplog, fault):
    def broken(true):
        def score_wrong(columns, found, bins):
            if fault == "raises":
                raise RuntimeError("symbol not found")
            arrays = true(columns, found, bins)
            precision = arrays.precision.copy()
            precision.flat[np.flatnonzero(precision > 0)[0]] -= 1e-15
            return arrays._replace(precision=precision)

        return score_wrong

    for name in ("native", "hotcoco"):
        monkeypatch.setitem(backends._SCORERS, name, broken(backends._SCORERS[name]))
    with caplog.at_level(logging.WARNING):
        assert choice() == "pycocotools"
    said = {"raises": "failed (symbol not found)", "differs": "gave another precision"}[fault]
    assert said in caplog.text


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
    scored = score(dataset, results, bins=ASPECTS, backend=backend)
    for number, name in enumerate(ASPECTS.names[1:], start=1):
        expected = 1.0 if name == found else 0.0
        assert scored.average_precision(number) == pytest.approx(expected)
        assert scored.average_recall(number) == pytest.approx(expected)
    # Recall 1/3 is reached by 34 of the 101 recalls 0.00 ... 1.00.
    assert scored.average_precision() == pytest.approx(34 / 101)
