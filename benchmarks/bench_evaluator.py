"""COCO evaluation beside pycocotools: a whole set, part by part, and with everything around it.

    python benchmarks/bench_evaluator.py [--images 5000] [--detections 100] [--rounds 3]

Boxes of 80 classes, as many an image as in COCO val2017 (7.3, Poisson) and 1.2 % of them crowds;
detections are moved copies of them, 30 % with a drawn class. pycocotools gets its lists of
dictionaries ready-made, hotcoco and ours the columns that the workers send. The numbers have to be
equal before a time is printed. CPU and wall seconds, medians of rounds in which all take turns;
`--reference-rounds` says in how many of them pycocotools takes part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from results import keep

from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.evaluation.analysis import analyse
from orchestrator.evaluation.coco import METRICS, StreamingEvaluator, evaluate
from orchestrator.evaluation.coco_matching import CocoMatcher, fastest
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import Results
from orchestrator.predict.scoring import write_evaluation

CLASSES = 80
BATCH = 16


def make_dataset(images: int, rng: np.random.Generator) -> Dataset:
    counts = rng.poisson(7.3, images)
    total = int(counts.sum())
    sides = np.exp(rng.normal(4.0, 0.9, (total, 2))).clip(4, 400)
    corners = rng.uniform(0, 300, (total, 2))
    return Dataset(
        label_map=LabelMap(
            tuple(f"class {i}" for i in range(CLASSES)), tuple(range(1, CLASSES + 1))
        ),
        root="/nowhere",
        files=tuple(f"{i}.jpg" for i in range(images)),
        image_ids=np.arange(images) * 7 + 3,
        widths=np.full(images, 640, np.int32),
        heights=np.full(images, 480, np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=np.hstack([corners, sides]),
        labels=rng.integers(0, CLASSES, total),
        areas=sides.prod(axis=1) * 0.7,
        crowd=rng.random(total) < 0.012,
    )


def make_batches(dataset: Dataset, each: int, rng: np.random.Generator) -> list[Detections]:
    """Detections in batches of 16 images, as a worker sends them."""
    batches = []
    for start in range(0, len(dataset), BATCH):
        parts = []
        for image in range(start, min(start + BATCH, len(dataset))):
            rows = dataset.boxes_of(image)
            count = rows.stop - rows.start
            if count:
                source = rng.integers(rows.start, rows.stop, each)
                boxes = dataset.boxes_xywh[source] + rng.normal(0, 12, (each, 4))
                kept = rng.random(each) < 0.7
                labels = np.where(kept, dataset.labels[source], rng.integers(0, CLASSES, each))
            else:
                boxes = rng.uniform(1, 200, (each, 4))
                labels = rng.integers(0, CLASSES, each)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], 1) + boxes[:, :2]
            ids = dataset.image_ids[image : image + 1]
            scores = np.sort(rng.random(each))[::-1].astype(np.float32)
            columns = (np.repeat(ids, each), labels, boxes.astype(np.float32), scores)
            parts.append(Detections(ids, *columns))
        batches.append(Detections.merge(parts))
    return batches


def tree_of(dataset: Dataset) -> dict[str, Any]:
    """Ground truth as pycocotools wants it."""
    image_of = np.repeat(dataset.image_ids, np.diff(dataset.offsets))
    return {
        "images": [{"id": i} for i in dataset.image_ids.tolist()],
        "categories": [{"id": i} for i in dataset.label_map.ids],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(image_of[row]),
                "category_id": dataset.label_map.ids[int(dataset.labels[row])],
                "bbox": dataset.boxes_xywh[row].tolist(),
                "area": float(dataset.areas[row]),
                "iscrowd": int(dataset.crowd[row]),
            }
            for row in range(len(dataset.labels))
        ],
    }


def reference(truth: COCO, entries: list[dict[str, Any]]) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(entries), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def by_hotcoco(dataset: Dataset, found: Detections) -> list[float]:
    """The 12 numbers by hotcoco (https://github.com/derekallman/hotcoco, MIT), from columns."""
    truth = CocoMatcher(dataset).truth
    columns = CocoMatcher(dataset).columns(Results.of(found))
    images = len(truth.offsets) - 1
    annotated = hotcoco.COCO.from_arrays(
        [{"id": i + 1} for i in range(images)],
        [{"id": i + 1, "name": str(i + 1)} for i in range(len(dataset.label_map))],
        np.repeat(np.arange(images), np.diff(truth.offsets)) + 1,
        truth.labels + 1,
        truth.boxes,
        area=truth.measures,
        iscrowd=truth.crowd,
    )
    rows = [columns.images + 1, columns.boxes, columns.scores, columns.labels + 1]
    results = annotated.load_res(np.column_stack(rows).astype(np.float64))
    evaluation = hotcoco.COCOeval(annotated, results, "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


class Times:
    """CPU and wall seconds of named parts, over rounds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {}

    def of(self, name: str, work: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = work()
        spent = (time.process_time() - cpu, time.perf_counter() - wall)
        self.seconds.setdefault(name, []).append(spent)
        return result

    def median(self, name: str) -> tuple[float, float]:
        cpu, wall = zip(*self.seconds[name], strict=True)
        return statistics.median(cpu), statistics.median(wall)


def one_round(dataset: Dataset, batches: list[Detections], times: Times) -> dict[str, float]:
    found = times.of("merge", lambda: Detections.merge(batches))
    batch = times.of("evaluate", lambda: evaluate(dataset, found))
    peer = times.of("hotcoco", lambda: by_hotcoco(dataset, found))
    assert np.allclose(peer, [batch.numbers[name] for name in METRICS], rtol=0, atol=1e-9)
    evaluator = StreamingEvaluator(dataset)
    times.of("streaming, as batches arrive", lambda: [evaluator.add(one) for one in batches])
    streamed = times.of("streaming, after the last batch", evaluator.finish)
    assert streamed == batch
    analysis = times.of("analyse", lambda: analyse(dataset, found))
    assert analysis.metrics == batch
    with tempfile.TemporaryDirectory() as folder:
        results = Results.of(found)
        times.of("files", lambda: write_evaluation(Path(folder), results, analysis, {}))
    return batch.numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference-rounds", type=int, default=1)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    dataset = make_dataset(options.images, rng)
    batches = make_batches(dataset, options.detections, rng)
    found = Detections.merge(batches)
    print(f"{len(dataset)} images, {len(dataset.labels)} boxes, {len(found)} detections; ", end="")
    print(f"matched by {fastest()}; load {os.getloadavg()[0]:.1f}")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = tree_of(dataset)
        truth.createIndex()
    entries = found.to_coco(dataset.label_map)
    times = Times()
    for number in range(options.rounds):
        numbers = one_round(dataset, batches, times)
        if number < options.reference_rounds:
            expected = times.of("pycocotools", lambda: reference(truth, entries))
            furthest = max(abs(numbers[n] - e) for n, e in zip(METRICS, expected, strict=True))
            assert furthest <= 1e-9, furthest
    print("| | CPU s | wall s |\n|---|---|---|")
    for name in times.seconds:
        cpu, wall = times.median(name)
        print(f"| {name} | {cpu:.3f} | {wall:.3f} |")
    ours = times.median("evaluate")
    last = times.median("streaming, after the last batch")
    whole = [sum(times.median(n)[k] for n in ("merge", "analyse", "files")) for k in (0, 1)]
    if options.reference_rounds:
        theirs = times.median("pycocotools")
        print(f"\nfaster than pycocotools: {theirs[0] / ours[0]:.0f}x of CPU time, ", end="")
        print(f"{theirs[1] / ours[1]:.0f}x of wall time; the same 12 numbers")
    hotcoco = times.median("hotcoco")
    print(
        f"after the last batch: {last[0] / hotcoco[0]:.0%} of the CPU time of hotcoco's batch ",
        end="",
    )
    print(f"evaluation, {last[0] / ours[0]:.0%} of our own")
    print(f"merge, match, accumulate, report: {whole[0]:.2f} s of CPU time, {whole[1]:.2f} s wall")
    print(f"load {os.getloadavg()[0]:.1f}")
    ratios = {"after the last batch, of hotcoco's": hotcoco[0] / last[0]}
    if options.reference_rounds:
        ratios["faster than pycocotools, CPU"] = theirs[0] / ours[0]
    keep("evaluator", ratios)


if __name__ == "__main__":
    main()
