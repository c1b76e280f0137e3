"""Samples of a run: the same images at each evaluation, with what was detected on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.data.decode import read_image
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.paths import ReadRules
from orchestrator.evaluation.marks import marks_in, write_samples
from orchestrator.evaluation.results import Results
from orchestrator.storage.run_files import SAMPLES
from tests.support.data_cases import write_coco


def test_a_run_leaves_samples_of_each_evaluation(small_run: Path) -> None:
    # Twelve images, four a step, evaluated after two and after four epochs.
    names = sorted(path.name for path in (small_run / SAMPLES).iterdir())
    assert names == ["step-00000006.jpg", "step-00000012.jpg"]
    assert read_image(small_run / SAMPLES / names[0]).shape == (2 * 404, 3 * 404, 3)


def no_results(dataset) -> Results:
    none = np.zeros(0, np.int64)
    return Results(dataset.image_ids, none, none, np.zeros((0, 4)), np.zeros(0))


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, 4, seed=3)
    rules = ReadRules(need_images=False)
    dataset = read_coco(tmp_path / "images", tmp_path / "instances.json", rules).dataset
    target = tmp_path / "out" / "sample.jpg"
    assert write_samples(target, dataset, no_results(dataset))
    whole = read_image(target).shape
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    target.unlink()
    assert not write_samples(target, dataset, no_results(dataset))
    assert not target.exists()
    assert whole[1] == 3 * 404


def test_marks_keep_to_score_and_limit(tmp_path: Path) -> None:
    write_coco(tmp_path, 1, seed=3)
    dataset = read_coco(
        tmp_path / "images", tmp_path / "instances.json", ReadRules(need_images=False)
    ).dataset
    box = dataset.boxes_xywh[0]
    results = Results(
        dataset.image_ids,
        np.repeat(dataset.image_ids, 3),
        np.repeat(dataset.labels[:1], 3),
        np.stack([box + np.array([500, 500, 0, 0]), box, box]),
        np.array([0.5, 0.9, 0.2]),
    )
    detections, annotations = marks_in(dataset, 0, results, score=0.3)
    assert [(one.kind, one.text[-4:]) for one in detections] == [
        ("detection", "0.90"),
        ("false positive", "0.50"),
    ]
    assert [one.kind for one in annotations] == ["annotation"] + ["missed"] * (len(annotations) - 1)
    best, _ = marks_in(dataset, 0, results, score=0.3, limit=1)
    assert [one.text[-4:] for one in best] == ["0.90"]
