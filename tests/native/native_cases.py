"""Boxes, scores and rules as hypothesis draws them for the kernels."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import strategies as st

from native import reference
from native.records import AccumulateParams, Annotations, Detections, MatchedDetections, MatchParams
from native.rules import FIRST, LAST, Rule, make_rule
from native.types import Bool, Float32, Float64, Int64

#: Examples per property; `make parity` raises it.
CASES = int(os.environ.get("ORCHESTRATOR_PARITY_CASES", "150"))


class Case(NamedTuple):
    boxes: Float32
    scores: Float32
    labels: Int64
    offsets: Int64
    rule: Rule


def _floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(float(np.float32(low)), float(np.float32(high)), width=32)


_PLACES = [st.integers(0, 6).map(float), _floats(-50, 50), _floats(-4e17, 4e17)]
_SIZES = [st.sampled_from([0.0, 1.0, 2.0, 4.0]), _floats(0, 60), _floats(0, 5e17)]
_SCORES = [st.sampled_from([0.0, 0.25, 0.5, 1.0]), _floats(0, 1), _floats(0, 2e-3)]


@st.composite
def cases(draw: st.DrawFn, *, most: int = 24) -> Case:
    """None, one or many boxes, with duplicates, ties, no area and huge ones among them.

    Some are laid out in a row again and again, so that the kernels sort and split them in blocks.
    """
    kind = draw(st.integers(0, 2))
    count = draw(st.integers(0, most))
    corners = draw(hnp.arrays(np.float32, (count, 2), elements=_PLACES[kind]))
    sizes = draw(hnp.arrays(np.float32, (count, 2), elements=_SIZES[kind]))
    scores = draw(hnp.arrays(np.float32, count, elements=draw(st.sampled_from(_SCORES))))
    labels = draw(
        hnp.arrays(np.int64, count, elements=draw(st.sampled_from([st.just(3), _few, _far])))
    )
    copies = draw(st.sampled_from([1, 1, 2, 12])) if count else 1
    step = np.float32(draw(st.sampled_from([0.0, 0.5, 30.0])))
    shift = np.repeat(np.arange(copies, dtype=np.float32) * step, count)[:, None]
    corners = np.tile(corners, (copies, 1)) + shift
    boxes = np.concatenate([corners, corners + np.tile(sizes, (copies, 1))], axis=1)
    rows = count * copies
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
    rule = draw(rules())
    scores = np.tile(scores, copies)
    if rule.score_threshold < 0:
        scores = np.float32(2) * scores - np.float32(1)
    return Case(
        boxes, scores, np.tile(labels, copies), np.array([0, *cuts, rows], dtype=np.int64), rule
    )


_few = st.integers(0, 3)
_far = st.sampled_from([-(2**63), 0, 2**63 - 1])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    method = draw(st.sampled_from(["linear", "gaussian", "hard"]))
    thresholds: list[float | None] = [0.0, 0.001, 0.3]
    return make_rule(
        method=method,
        iou_threshold=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(0, 1)),
        sigma=draw(st.sampled_from([0.5, 1e-30, 1e-3, 30.0]) | st.floats(0.01, 2)),
        score_threshold=draw(
            st.sampled_from([*thresholds, None] if method == "hard" else thresholds)
        ),
        plus_one=draw(st.booleans()),
        top_k_per_class=draw(st.none() | st.integers(1, 40)),
        max_per_class=draw(st.none() | st.integers(1, 12)),
        max_total=draw(st.none() | st.integers(1, 30)),
    )


class PriorCase(NamedTuple):
    boxes: Float32
    valid: Bool
    priors: Float32
    threshold: float
    claims: int


@st.composite
def prior_cases(draw: st.DrawFn) -> PriorCase:
    """Padded boxes and priors, some of them equal, without area or repeated over many tiles."""
    kind = draw(st.integers(0, 2))

    def boxes(*shape: int) -> Float32:
        corners = draw(hnp.arrays(np.float32, (*shape, 2), elements=_PLACES[kind]))
        sizes = draw(hnp.arrays(np.float32, (*shape, 2), elements=_SIZES[kind]))
        return np.concatenate([corners, corners + sizes], axis=-1)

    images, slots = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    priors = boxes(draw(st.integers(0, 12)))
    copies = draw(st.sampled_from([1, 1, 30]))
    step = np.float32(draw(st.sampled_from([0.0, 0.5, 30.0])))
    shift = np.repeat(np.arange(copies, dtype=np.float32) * step, len(priors))[:, None]
    return PriorCase(
        boxes(images, slots),
        draw(hnp.arrays(np.bool_, (images, slots))),
        np.tile(priors, (copies, 1)) + shift,
        float(np.float32(draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])))),
        draw(st.sampled_from([FIRST, LAST])),
    )


def assert_same_bits(got: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for have, want in zip(got, expected, strict=True):
        assert (have.dtype, have.shape) == (want.dtype, want.shape)
        assert have.tobytes() == want.tobytes(), f"{have} is not {want}"


def by_reference(case: Case) -> tuple[Int64, Float32, Int64]:
    return reference.suppress(*case, threads=1)


def compiled() -> Any:
    return pytest.importorskip("native._core", reason="the kernels were not compiled here")


class DetectionCase(NamedTuple):
    detections: Detections
    annotations: Annotations
    params: MatchParams


@st.composite
def detection_cases(draw: st.DrawFn) -> DetectionCase:
    """Boxes on a coarse grid or anywhere, so that overlaps tie, miss and meet thresholds."""
    images = draw(st.integers(1, 4))
    places = _DOUBLES[draw(st.integers(0, 1))]
    sizes = st.sampled_from([0.0, 1.0, 2.0, 4.0]) | places.filter(lambda size: size >= 0)
    labels = draw(st.sampled_from([st.just(3), _few, _far]))
    measures = st.sampled_from([0.0, 1.0, 4.0, 9.0])

    def columns(rows: int) -> tuple[Int64, Float64, Float64]:
        corners = draw(hnp.arrays(np.float64, (rows, 2), elements=places))
        extents = draw(hnp.arrays(np.float64, (rows, 2), elements=sizes))
        return (
            draw(hnp.arrays(np.int64, rows, elements=labels)),
            np.concatenate([corners, extents], axis=1),
            draw(hnp.arrays(np.float64, rows, elements=measures)),
        )

    boxes, count = draw(st.integers(0, 12)), draw(st.integers(0, 20))
    cuts = sorted(draw(st.lists(st.integers(0, boxes), min_size=images - 1, max_size=images - 1)))
    annotations = Annotations(
        np.array([0, *cuts, boxes], np.int64),
        *columns(boxes),
        draw(hnp.arrays(np.bool_, boxes)),
    )
    where = draw(hnp.arrays(np.int64, count, elements=st.integers(0, images - 1)))
    scores = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]) | st.floats(-2, 2)
    detections = Detections(
        where, *columns(count), draw(hnp.arrays(np.float64, count, elements=scores))
    )
    thresholds = draw(st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.75, 1.0]), min_size=1, max_size=5))
    ends = st.sampled_from([0.0, 1.0, 4.0, 10.0])
    ranges = draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=4))
    limit = draw(st.sampled_from([1, 3, 100]))
    return DetectionCase(
        detections, annotations, MatchParams(np.array(thresholds), np.array(ranges), limit)
    )


_DOUBLES = [st.integers(0, 6).map(float), st.floats(-1e200, 1e200)]


class AccumulateCase(NamedTuple):
    matched: MatchedDetections
    params: AccumulateParams


@st.composite
def accumulate_cases(draw: st.DrawFn) -> AccumulateCase:
    """Any matches, most of them of one piece, on detections whose scores and images repeat."""
    count, classes = draw(st.integers(0, 30)), draw(st.integers(1, 4))
    levels, ranges = draw(st.sampled_from([(1, 1), (3, 2), (10, 4), (64, 1), (1, 64)]))
    whole = 2 ** (levels * ranges) - 1
    words = st.sampled_from([0, whole, 1]) | st.integers(0, whole)
    true_positives = draw(hnp.arrays(np.uint64, count, elements=words))

    def numbers(most: int) -> Int64:
        return draw(hnp.arrays(np.int64, count, elements=st.integers(0, most)))

    scores = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5]) | st.floats(allow_nan=False)
    matched = MatchedDetections(
        images=numbers(300),
        labels=numbers(classes - 1),
        scores=draw(hnp.arrays(np.float64, count, elements=scores)),
        true_positives=true_positives,
        false_positives=draw(hnp.arrays(np.uint64, count, elements=words)) & ~true_positives,
        ranks=numbers(12),
    )
    recalls = draw(st.sampled_from([[0.0, 0.5, 1.0], [0.25], np.linspace(0, 1, 101)]))
    boxes = draw(hnp.arrays(np.int64, (classes, ranges), elements=st.integers(0, 40)))
    return AccumulateCase(
        matched, AccumulateParams(boxes, levels, np.array(recalls), np.array([1, 10]))
    )
