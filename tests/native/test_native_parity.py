"""The compiled kernels give the bits of the reference, whatever the instructions or threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_cases import (
    CASES,
    AccumulateCase,
    Case,
    DetectionCase,
    PriorCase,
    accumulate_cases,
    assert_same_bits,
    by_reference,
    cases,
    compiled,
    detection_cases,
    prior_cases,
)

from native import reference
from native.records import AccumulateParams, Annotations, Detections, MatchedDetections, MatchParams
from native.rules import make_rule

_core = compiled()


@pytest.fixture(params=_core.instruction_sets())
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(_core.instruction_sets()[-1])


_drawn = settings(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_drawn
@given(case=cases(), threads=st.integers(1, 3))
def test_suppression_equals_the_reference(instructions: str, case: Case, threads: int) -> None:
    assert_same_bits(_core.suppress(*case, threads), by_reference(case))


@_drawn
@given(case=prior_cases(), threads=st.integers(1, 3))
def test_prior_matching_equals_the_reference(
    instructions: str, case: PriorCase, threads: int
) -> None:
    assert_same_bits(_core.match_priors(*case, threads), reference.match_priors(*case, threads=1))


@_drawn
@given(case=detection_cases(), threads=st.integers(1, 3))
def test_detection_matching_equals_the_reference(case: DetectionCase, threads: int) -> None:
    assert_same_bits(
        _core.match_detections(*case, threads), reference.match_detections(*case, threads=1)
    )


@_drawn
@given(case=accumulate_cases(), threads=st.integers(1, 3))
def test_accumulating_equals_the_reference(case: AccumulateCase, threads: int) -> None:
    assert_same_bits(_core.accumulate(*case, threads), reference.accumulate(*case, threads=1))


@pytest.mark.parametrize("method", ["linear", "gaussian", "hard"])
@pytest.mark.parametrize("caps", [(None, None), (40, None), (None, 100)])
@pytest.mark.parametrize("images", [1, 5])
def test_thousands_of_boxes_on_threads_equal_the_reference(
    instructions: str, method: str, caps: tuple[int | None, int | None], images: int
) -> None:
    rng = np.random.default_rng(7)
    count = 3000
    corners = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corners, corners + rng.exponential(40, (count, 2))], 1)
    case = Case(
        boxes.astype(np.float32),
        rng.uniform(0, 1, count).round(3).astype(np.float32),
        rng.integers(0, 2, count),
        np.linspace(0, count, images + 1).astype(np.int64),
        make_rule(
            method=method,
            iou_threshold=0.3,
            sigma=0.5,
            score_threshold=0.001,
            plus_one=True,
            top_k_per_class=None,
            max_per_class=caps[0],
            max_total=caps[1],
        ),
    )
    expected = by_reference(case)
    for threads in (1, 2, 4):
        assert_same_bits(_core.suppress(*case, threads), expected)


_any_float = st.floats(width=32) | st.sampled_from([0.0, 1e18, 1.1e18, -1e18])


@settings(max_examples=CASES, deadline=None)
@given(st.lists(st.tuples(*[_any_float] * 4), max_size=6))
def test_the_same_values_are_refused(rows: list[tuple[float, ...]]) -> None:
    boxes = np.array(rows, dtype=np.float32).reshape(-1, 4)
    assert _core.first_bad_box(boxes) == reference.first_bad_box(boxes)
    scores = np.ascontiguousarray(boxes[:, 0])
    assert _core.first_bad_score(scores) == reference.first_bad_score(scores)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot run 'avx9'"):
        _core.use_instruction_set("avx9")


def test_thousands_of_detections_on_threads_equal_the_reference() -> None:
    rng = np.random.default_rng(3)
    count, images, classes = 20_000, 300, 5
    annotations = Annotations(
        offsets=np.arange(images + 1) * 6,
        labels=rng.integers(0, classes, images * 6),
        boxes=rng.integers(0, 40, (images * 6, 4)).astype(np.float64),
        measures=rng.uniform(0, 9, images * 6),
        crowd=rng.random(images * 6) < 0.1,
    )
    source = rng.integers(0, images * 6, count)
    detections = Detections(
        images=source // 6,
        labels=annotations.labels[source],
        boxes=annotations.boxes[source] + rng.integers(0, 4, (count, 4)),
        measures=rng.uniform(0, 9, count),
        scores=rng.random(count).round(2),
    )
    params = MatchParams(np.array([0.5, 0.75]), np.array([[0.0, 9.0], [0.0, 4.0]]), 10)
    matches = reference.match_detections(detections, annotations, params, threads=1)
    matched = MatchedDetections(
        detections.images, detections.labels, detections.scores, *matches[:3]
    )
    accumulate_params = AccumulateParams(
        np.full((classes, 2), 70), 2, np.linspace(0, 1, 101), np.array([1, 10])
    )
    curves = reference.accumulate(matched, accumulate_params, threads=1)
    for threads in (1, 2, 4):
        assert_same_bits(_core.match_detections(detections, annotations, params, threads), matches)
        assert_same_bits(_core.accumulate(matched, accumulate_params, threads), curves)
