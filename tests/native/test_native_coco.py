"""DetectionMatches and curves by hand, and the refusal of columns that do not fit."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import native
from native import (
    AccumulateParams,
    Annotations,
    Detections,
    MatchedDetections,
    MatchParams,
    reference,
)

try:
    _compiled: Any = importlib.import_module("native._core")
except ImportError:
    _compiled = None

_INFINITE = float("inf")

#: Label and box, and for boxes whether they are a crowd; the measure is the area.
Row = tuple[int, list[float], bool]


@pytest.fixture(
    autouse=True,
    params=[
        pytest.param(
            _compiled, id="native", marks=pytest.mark.skipif(not _compiled, reason="not compiled")
        ),
        pytest.param(reference, id="reference"),
    ],
)
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both implementations in turn behind the public functions."""
    monkeypatch.setattr("native.coco.kernels", lambda: request.param)


def annotations(*images: Sequence[Row]) -> Annotations:
    rows = [row for image in images for row in image]
    boxes = np.array([row[1] for row in rows], np.float64).reshape(-1, 4)
    return Annotations(
        offsets=np.cumsum([0, *(len(image) for image in images)]),
        labels=np.array([row[0] for row in rows], np.int64),
        boxes=boxes,
        measures=boxes[:, 2] * boxes[:, 3],
        crowd=np.array([row[2] for row in rows], np.bool_),
    )


def detections(*rows: tuple[int, int, list[float], float]) -> Detections:
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    return Detections(
        images=np.array([row[0] for row in rows], np.int64),
        labels=np.array([row[1] for row in rows], np.int64),
        boxes=boxes,
        measures=boxes[:, 2] * boxes[:, 3],
        scores=np.array([row[3] for row in rows], np.float64),
    )


def match_params(
    *thresholds: float, ranges: Any = ((0, _INFINITE),), limit: int = 100
) -> MatchParams:
    return MatchParams(np.array(thresholds), np.array(ranges, np.float64), limit)


def bits(words: Any) -> list[str]:
    return [f"{int(word):b}" for word in words]


TEN = [0.0, 0.0, 10.0, 10.0]


def test_the_best_score_takes_the_box_and_its_double_is_a_false_positive() -> None:
    matched = native.match_detections(
        detections((0, 7, [0, 0, 10, 9], 0.5), (0, 7, TEN, 0.8), (0, 8, TEN, 0.9)),
        annotations([(7, TEN, False)]),
        match_params(0.5, 0.95),
    )
    assert bits(matched.true_positives) == ["0", "11", "0"]
    assert bits(matched.false_positives) == ["11", "0", "11"]
    assert matched.ranks.tolist() == [1, 0, 0]
    assert matched.boxes.tolist() == [-1, 0, -1]


def test_an_overlap_counts_from_the_threshold_on() -> None:
    # IoU 0.9: enough at the first two thresholds.
    matched = native.match_detections(
        detections((0, 0, [0, 0, 10, 9], 0.5)),
        annotations([(0, TEN, False)]),
        match_params(0.5, 0.9, 0.95),
    )
    assert bits(matched.true_positives) == ["11"]
    assert bits(matched.false_positives) == ["100"]


def test_boxes_whose_areas_overflow_overlap_nothing() -> None:
    """IoU would not be a number, which is below no threshold; boxes after it would match too."""
    huge = [0.0, 0.0, 1e200, 1e109]
    boxes = [(0, huge, False), (0, [20.0, 20.0, 1.0, 1.0], False)]
    with np.errstate(over="ignore"):
        matched = native.match_detections(
            detections((0, 0, huge, 0.9), (0, 0, [20, 20, 1, 1], 0.5)),
            annotations(boxes),
            match_params(0.5),
        )
    assert matched.boxes.tolist() == [-1, 1]


def test_of_equal_overlaps_the_last_box_is_taken_and_of_equal_scores_the_first_row() -> None:
    rows = [(0, 0, TEN, 0.5), (0, 0, TEN, 0.5)]
    matched = native.match_detections(
        detections(*rows), annotations([(0, TEN, False), (0, TEN, False)]), match_params(0.5)
    )
    assert matched.boxes.tolist() == [1, 0]
    assert matched.ranks.tolist() == [0, 1]


def test_a_crowd_takes_any_number_and_none_of_them_counts() -> None:
    # The two small ones lie in the crowd, which is 50 wide; the third does not touch it.
    rows = [
        (1, 0, [0, 0, 5, 5], 0.9),
        (1, 0, [9, 9, 5, 5], 0.8),
        (1, 0, [90, 0, 5, 5], 0.7),
    ]
    matched = native.match_detections(
        detections(*rows), annotations([], [(0, [0, 0, 50, 50], True)]), match_params(0.5)
    )
    assert bits(matched.true_positives) == ["0", "0", "0"]
    assert bits(matched.false_positives) == ["0", "0", "1"]
    assert matched.boxes.tolist() == [0, 0, -1]


def test_a_box_that_counts_goes_before_one_that_overlaps_more() -> None:
    # IoU 1 with the crowd and 0.8 with the box.
    boxes = annotations([(0, [0, 0, 50, 50], True), (0, [0, 0, 10, 8], False)])
    matched = native.match_detections(detections((0, 0, TEN, 0.9)), boxes, match_params(0.5, 0.9))
    assert bits(matched.true_positives) == ["1"]
    assert bits(matched.false_positives) == ["0"]
    assert matched.boxes.tolist() == [1]


def test_ranges_ignore_boxes_and_detections_outside() -> None:
    # Areas: box 100; detections 90, which finds it, and 400 and 25, which find nothing.
    rows = [
        (0, 0, [0, 0, 10, 9], 0.9),
        (0, 0, [50, 0, 20, 20], 0.8),
        (0, 0, [80, 0, 5, 5], 0.7),
    ]
    wanted = match_params(0.5, ranges=[(0, 1000), (0, 100), (100, 1000), (101, 1000)])
    matched = native.match_detections(detections(*rows), annotations([(0, TEN, False)]), wanted)
    # Bits from the right: all, up to 100, from 100, from 101, where the box no longer counts.
    assert bits(matched.true_positives) == ["111", "0", "0"]
    assert bits(matched.false_positives) == ["0", "1101", "11"]


def test_those_beyond_the_limit_are_neither_true_nor_false() -> None:
    rows = [(0, 0, [50, 0, 5, 5], 0.9), (0, 0, TEN, 0.8), (0, 1, TEN, 0.1)]
    boxes = annotations([(0, TEN, False), (1, TEN, False)])
    matched = native.match_detections(detections(*rows), boxes, match_params(0.5, limit=1))
    assert bits(matched.true_positives) == ["0", "0", "1"]
    assert bits(matched.false_positives) == ["1", "0", "0"]
    assert matched.boxes.tolist() == [-1, -1, 1]


def matched_detections(*rows: tuple[int, float, int, int, int]) -> MatchedDetections:
    """Of class 0, from (image, score, true_positives, false_positives, rank)."""
    images, scores, true_positives, false_positives, ranks = zip(*rows, strict=True)
    return MatchedDetections(
        images=np.array(images),
        labels=np.zeros(len(rows), np.int64),
        scores=np.array(scores),
        true_positives=np.array(true_positives, np.uint64),
        false_positives=np.array(false_positives, np.uint64),
        ranks=np.array(ranks),
    )


def accumulate_params(*boxes: list[int], levels: int = 1) -> AccumulateParams:
    return AccumulateParams(
        np.array(boxes), levels, np.array([0.0, 0.5, 0.75, 1.0]), np.array([1, 2])
    )


def test_precision_at_recalls() -> None:
    # By score: a true, a false, a true positive; two boxes.
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1.
    matched = matched_detections((4, 0.7, 1, 0, 1), (4, 0.9, 1, 0, 0), (2, 0.8, 0, 1, 0))
    curves = native.accumulate(matched, accumulate_params([2], [0]))
    assert curves.precision[0, :, 0, 0] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert curves.scores[0, :, 0].tolist() == [0.9, 0.9, 0.7, 0.7]
    assert curves.recall[0, 0, 0].tolist() == [0.5, 1.0]
    # A class without boxes.
    assert (curves.precision[:, :, 1] == -1).all()
    assert (curves.scores[:, :, 1] == -1).all()
    assert (curves.recall[:, 1] == -1).all()


def test_equal_scores_go_by_image() -> None:
    matched = matched_detections((300, 0.5, 1, 0, 0), (2, 0.5, 0, 1, 0))
    assert native.accumulate(matched, accumulate_params([1])).precision[
        0, :, 0, 0
    ] == pytest.approx([0.5] * 4)
    swapped = dataclasses.replace(matched, images=np.array([2, 300]))
    assert native.accumulate(swapped, accumulate_params([1])).precision[
        0, :, 0, 0
    ] == pytest.approx([1] * 4)


def test_an_ignored_detection_counts_nowhere_but_shows_its_score() -> None:
    matched = matched_detections((0, 0.9, 0, 0, 0), (0, 0.8, 1, 0, 1))
    curves = native.accumulate(matched, accumulate_params([2]))
    assert curves.precision[0, :, 0, 0] == pytest.approx([1, 1, 0, 0])
    assert curves.scores[0, :, 0].tolist() == [0.9, 0.8, 0, 0]
    assert curves.recall[0, 0, 0].tolist() == [0.0, 0.5]


def test_levels_and_ranges_are_counted_apart() -> None:
    # Two levels and two ranges: bits 0 and 1 are the first range, 2 and 3 the second.
    matched = matched_detections((0, 0.9, 0b0001, 0b0110, 0), (1, 0.8, 0b0110, 0b0001, 0))
    curves = native.accumulate(matched, accumulate_params([1, 1], levels=2))
    ends = [curves.precision[level, -1, 0, span] for span in (0, 1) for level in (0, 1)]
    assert ends == pytest.approx([1, 1 / 2, 1 / 2, 0])


def test_nothing_found() -> None:
    nothing = MatchedDetections(*(np.zeros(0, t) for t in ["q", "q", "d", "Q", "Q", "q"]))
    curves = native.accumulate(nothing, accumulate_params([3]))
    assert (curves.precision == 0).all()
    assert (curves.recall == 0).all()
    assert (
        len(
            native.match_detections(
                detections(), annotations([(0, TEN, False)]), match_params(0.5)
            ).true_positives
        )
        == 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.array([1])}, "beyond the 1 images"),
        ({"images": np.array([-1])}, "beyond the 1 images"),
        ({"scores": np.array([np.nan])}, r"scores\[0\] is NaN"),
        ({"labels": np.array([0, 0])}, "differ in length"),
        ({"boxes": np.zeros((1, 5))}, "x y width height"),
    ],
)
def test_detections_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.match_detections(
            dataclasses.replace(detections((0, 0, TEN, 0.5)), **change),
            annotations([(0, TEN, False)]),
            match_params(0.5),
        )


def test_arrays_of_another_kind() -> None:
    with pytest.raises(TypeError, match="scores is float32; it must be float64"):
        dataclasses.replace(detections((0, 0, TEN, 0.5)), scores=np.zeros(1, np.float32))


@pytest.mark.parametrize("offsets", [[0, 2], [1, 1], [0, 2, 1], []])
def test_offsets_that_do_not_cover_the_boxes(offsets: list[int]) -> None:
    with pytest.raises(ValueError, match="offsets must rise from 0 to the 1 boxes"):
        dataclasses.replace(annotations([(0, TEN, False)]), offsets=np.array(offsets, np.int64))


def test_more_questions_than_bits() -> None:
    with pytest.raises(ValueError, match="66 pairs of threshold and range"):
        match_params(*[0.5] * 22, ranges=[(0, 1)] * 3)
    with pytest.raises(ValueError, match="limit=0"):
        match_params(0.5, limit=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([1])}, "beyond the 1 classes"),
        ({"images": np.array([-3])}, r"images\[0\] is negative"),
    ],
)
def test_matches_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    matched = matched_detections((0, 0.5, 1, 0, 0))
    with pytest.raises(ValueError, match=message):
        native.accumulate(dataclasses.replace(matched, **change), accumulate_params([1]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.array([[-1]])}, "negative number"),
        ({"levels": 65}, "65 levels"),
        ({"recalls": np.array([0.5, 0.5])}, "recalls must rise"),
        ({"limits": np.array([10, 1])}, "limits must rise"),
    ],
)
def test_accumulate_params_that_cannot_be_used(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(accumulate_params([1]), **change)
