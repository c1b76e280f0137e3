"""Suppression against hand-computed values, the published algorithm and torchvision."""

from __future__ import annotations

import importlib
import math
import threading
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import nms as torchvision_nms

import native
from native import dispatch as choice
from native import reference
from native.reference import exp_nonpositive
from native.types import Float32, Int64, checked_array

try:
    _compiled: Any = importlib.import_module("native._core")
except ImportError:
    _compiled = None


@pytest.fixture(
    params=[
        pytest.param(
            _compiled, id="native", marks=pytest.mark.skipif(not _compiled, reason="not compiled")
        ),
        pytest.param(reference, id="reference"),
    ]
)
def serving(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both implementations in turn behind the public functions."""
    monkeypatch.setattr("native.suppression.kernels", lambda: request.param)
    return request.param


pytestmark = pytest.mark.usefixtures("serving")


def _boxes(*rows: tuple[float, float, float, float]) -> Float32:
    return np.array(rows, dtype=np.float32).reshape(-1, 4)


def _scores(*values: float) -> Float32:
    return np.array(values, dtype=np.float32)


def _labels(*values: int) -> Int64:
    return np.array(values, dtype=np.int64)


def soft_nms(
    boxes: Float32, scores: Float32, labels: Int64, **options: Any
) -> tuple[Int64, Float32]:
    """Soft-NMS of one image."""
    keep, decayed, _ = native.soft_nms_batch(
        boxes, scores, labels, np.array([0, len(boxes)]), **options
    )
    return keep, decayed


def nms(boxes: Float32, scores: Float32, labels: Int64, **options: Any) -> Int64:
    """NMS of one image."""
    return native.nms_batch(boxes, scores, labels, np.array([0, len(boxes)]), **options)[0]


#: Area 100 each; the first two share 8 of 12 columns: IoU 80 / 120 = 2/3. The third is apart.
PAIR = _boxes((0, 0, 10, 10), (2, 0, 12, 10), (50, 50, 60, 60))
PAIR_SCORES = _scores(0.9, 0.8, 0.7)
SAME = _labels(0, 0, 0)


def test_linear_decay_by_hand() -> None:
    keep, decayed = soft_nms(PAIR, PAIR_SCORES, SAME, method="linear", iou_threshold=0.3)
    assert keep.tolist() == [0, 2, 1]
    np.testing.assert_allclose(decayed, [0.9, 0.7, 0.8 / 3], rtol=1e-6)


def test_gaussian_decay_by_hand() -> None:
    keep, decayed = soft_nms(PAIR, PAIR_SCORES, SAME, method="gaussian", sigma=0.5)
    assert keep.tolist() == [0, 2, 1]
    np.testing.assert_allclose(decayed, [0.9, 0.7, 0.8 * math.exp(-4 / 9 / 0.5)], rtol=1e-6)


def test_hard_removes_and_leaves_the_other_scores_alone() -> None:
    keep, decayed = soft_nms(PAIR, PAIR_SCORES, SAME, method="hard", iou_threshold=0.5)
    assert keep.tolist() == [0, 2]
    assert decayed.tolist() == [PAIR_SCORES[0], PAIR_SCORES[2]]


def test_hard_removes_even_without_a_score_cut() -> None:
    keep, _ = soft_nms(
        PAIR, PAIR_SCORES, SAME, method="hard", iou_threshold=0.5, score_threshold=0.0
    )
    assert keep.tolist() == [0, 2]


def test_nms_keeps_what_is_not_above_the_threshold() -> None:
    # IoU exactly 3/10: 3 of 10 columns shared by boxes of 6 and 7 columns.
    boxes = _boxes((0, 0, 6, 1), (3, 0, 10, 1))
    scores, labels = _scores(2, 1), _labels(0, 0)
    assert nms(boxes, scores, labels, iou_threshold=0.3).tolist() == [0, 1]
    assert nms(boxes, scores, labels, iou_threshold=0.299).tolist() == [0]


def test_plus_one_counts_the_last_pixel() -> None:
    # Widths 10 and 10 in pixels 0..9 and 5..14: 5 shared of 15, against 4 of 14 without.
    boxes = _boxes((0, 0, 9, 9), (5, 0, 14, 9))
    scores, labels = _scores(0.9, 0.8), _labels(0, 0)
    _, plain = soft_nms(boxes, scores, labels, iou_threshold=0.2)
    _, pixels = soft_nms(boxes, scores, labels, iou_threshold=0.2, plus_one=True)
    np.testing.assert_allclose(plain, [0.9, 0.8 * (1 - 4 / 14)], rtol=1e-6)
    np.testing.assert_allclose(pixels, [0.9, 0.8 * (1 - 5 / 15)], rtol=1e-6)


def test_boxes_without_area_overlap_only_as_pixels() -> None:
    boxes = _boxes((5, 5, 5, 5), (5, 5, 5, 5), (0, 0, 10, 10))
    scores, labels = _scores(0.9, 0.8, 0.7), _labels(0, 0, 0)
    assert nms(boxes, scores, labels, iou_threshold=0.0).tolist() == [0, 1, 2]
    assert nms(boxes, scores, labels, iou_threshold=0.0, plus_one=True).tolist() == [0]


def test_classes_do_not_meet() -> None:
    boxes = np.repeat(PAIR[:1], 3, axis=0)
    keep, decayed = soft_nms(boxes, PAIR_SCORES, _labels(2, 0, 2), iou_threshold=0.3)
    assert keep.tolist() == [0, 1]  # the twin of row 0 decays to 0
    assert decayed.tolist() == PAIR_SCORES[:2].tolist()


def test_ties_fall_to_the_lower_row() -> None:
    boxes = np.concatenate([PAIR[2:], PAIR[:2], PAIR[2:] + 20])
    scores = _scores(0.5, 0.5, 0.5, 0.5)
    assert nms(boxes, scores, _labels(0, 0, 0, 1), iou_threshold=0.5).tolist() == [0, 1, 3]


def test_zero_and_minus_zero_are_equal_scores() -> None:
    boxes = np.repeat(PAIR[:1], 2, axis=0)
    keep = nms(boxes, _scores(-0.0, 0.0), _labels(0, 0), iou_threshold=0.5)
    assert keep.tolist() == [0]


def test_score_cut_applies_to_given_and_decayed_scores() -> None:
    keep, _ = soft_nms(PAIR, PAIR_SCORES, SAME, iou_threshold=0.3, score_threshold=0.7)
    assert keep.tolist() == [0, 2]
    keep, _ = soft_nms(PAIR, PAIR_SCORES, SAME, iou_threshold=0.3, score_threshold=0.71)
    assert keep.tolist() == [0]


def test_a_box_of_equal_score_after_decay_comes_by_row() -> None:
    # The second decays by IoU 1/2 from 0.8 to 0.4, where it meets the third.
    boxes = _boxes((0, 0, 10, 10), (0, 0, 10, 5), (50, 50, 60, 60))
    keep, decayed = soft_nms(boxes, _scores(0.9, 0.8, 0.4), SAME, iou_threshold=0.3)
    assert keep.tolist() == [0, 1, 2]
    assert decayed[1] == decayed[2]


def _published_soft_nms(
    boxes: Float32, scores: Float32, method: str, threshold: float, sigma: float, cut: float
) -> dict[int, np.float32]:
    """The swap-and-scan of Bodla et al.'s cpu_soft_nms, with pixel lengths, row by row."""
    one = np.float32(1)
    rows = [[*box, score, row] for row, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    count = len(rows)
    i = 0
    while i < count:
        best = max(range(i, count), key=lambda at: rows[at][4])
        rows[i], rows[best] = rows[best], rows[i]
        tx1, ty1, tx2, ty2 = rows[i][:4]
        pos = i + 1
        while pos < count:
            x1, y1, x2, y2 = rows[pos][:4]
            area = (x2 - x1 + one) * (y2 - y1 + one)
            width = min(tx2, x2) - max(tx1, x1) + one
            height = min(ty2, y2) - max(ty1, y1) + one
            if width > 0 and height > 0:
                shared = width * height
                union = (tx2 - tx1 + one) * (ty2 - ty1 + one) + area - shared
                overlap = shared / union
                if method == "linear":
                    weight = one - overlap if overlap > np.float32(threshold) else one
                elif method == "gaussian":
                    weight = np.float32(np.exp(-float(overlap * overlap / np.float32(sigma))))
                else:
                    weight = np.float32(0) if overlap > np.float32(threshold) else one
                rows[pos][4] = weight * rows[pos][4]
                if rows[pos][4] < np.float32(cut):
                    rows[pos] = rows[count - 1]
                    count -= 1
                    continue
            pos += 1
        i += 1
    return {row[5]: row[4] for row in rows[:count]}


@pytest.mark.parametrize("method", ["linear", "gaussian", "hard"])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_published_algorithm(method: native.Method, seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 90, (150, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (150, 2))], 1).astype(np.float32)
    scores = rng.uniform(0.01, 1, 150).astype(np.float32)
    expected = _published_soft_nms(boxes, scores, method, 0.3, 0.5, 0.001)
    keep, decayed = soft_nms(
        boxes, scores, np.zeros(150, np.int64), method=method, iou_threshold=0.3, plus_one=True
    )
    assert dict(zip(keep.tolist(), decayed, strict=True)) == expected
    assert (np.diff(decayed) <= 0).all()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_keeps_what_torchvision_keeps(threshold: float) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 90, (600, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (600, 2))], 1).astype(np.float32)
    scores = rng.permutation(np.linspace(-3, 3, 600, dtype=np.float32))
    labels = rng.integers(0, 3, 600)
    kept: list[int] = []
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        found = torchvision_nms(torch.tensor(boxes[rows]), torch.tensor(scores[rows]), threshold)
        kept += rows[found.numpy()].tolist()
    expected = sorted(kept, key=lambda row: -scores[row])
    assert nms(boxes, scores, labels, iou_threshold=threshold).tolist() == expected


@pytest.mark.parametrize("method", ["linear", "gaussian", "hard"])
@pytest.mark.parametrize(("per_class", "total"), [(4, None), (None, 17), (4, 17), (200, 1)])
def test_caps_cut_the_full_answer(
    method: native.Method, per_class: int | None, total: int | None
) -> None:
    rng = np.random.default_rng(5)
    corners = rng.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (300, 2))], 1).astype(np.float32)
    scores = rng.uniform(0, 1, 300).astype(np.float32)
    labels = rng.integers(0, 6, 300)
    keep, decayed = soft_nms(boxes, scores, labels, method=method)
    seen: dict[int, int] = {}
    chosen = []
    for at, label in enumerate(labels[keep].tolist()):
        seen[label] = seen.get(label, 0) + 1
        if per_class is None or seen[label] <= per_class:
            chosen.append(at)
    chosen = chosen[:total]
    capped, capped_scores = soft_nms(
        boxes, scores, labels, method=method, max_per_class=per_class, max_total=total
    )
    assert capped.tolist() == keep[chosen].tolist()
    assert capped_scores.tolist() == decayed[chosen].tolist()


@pytest.mark.parametrize("method", ["linear", "gaussian", "hard"])
@pytest.mark.parametrize("total", [None, 10])
def test_only_the_best_of_a_class_take_part(method: native.Method, total: int | None) -> None:
    rng = np.random.default_rng(9)
    corners = rng.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(1, 60, (200, 2))], 1).astype(np.float32)
    scores = rng.integers(1, 9, 200).astype(np.float32) / 10  # many ties at the cut
    labels = rng.integers(0, 3, 200)
    best = []
    for label in range(3):
        rows = np.flatnonzero(labels == label)
        best += sorted(rows.tolist(), key=lambda row: (-scores[row], row))[:25]
    chosen = np.sort(best)
    keep, decayed = soft_nms(
        boxes, scores, labels, method=method, top_k_per_class=25, max_total=total
    )
    alone = soft_nms(boxes[chosen], scores[chosen], labels[chosen], method=method, max_total=total)
    assert keep.tolist() == chosen[alone[0]].tolist()
    assert decayed.tolist() == alone[1].tolist()


def test_a_batch_is_its_images_one_by_one() -> None:
    boxes = np.concatenate([PAIR, PAIR + 1, PAIR[:1]])
    scores = np.concatenate([PAIR_SCORES, PAIR_SCORES[::-1], PAIR_SCORES[:1]])
    labels = np.zeros(7, np.int64)
    offsets = np.array([0, 3, 3, 6, 7])
    keep, decayed, kept_offsets = native.soft_nms_batch(boxes, scores, labels, offsets)
    rows = native.nms_batch(boxes, scores, labels, offsets, iou_threshold=0.5, max_total=1)
    assert rows[0].tolist() == [0, 5, 6]
    assert rows[1].tolist() == [0, 1, 1, 2, 3]
    for n in range(4):
        part = slice(offsets[n], offsets[n + 1])
        alone = soft_nms(boxes[part], scores[part], labels[part])
        got = slice(kept_offsets[n], kept_offsets[n + 1])
        assert (keep[got] - offsets[n]).tolist() == alone[0].tolist()
        assert decayed[got].tolist() == alone[1].tolist()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("cap", [None, 1])
def test_none_and_one(rows: int, cap: int | None) -> None:
    keep, decayed = soft_nms(PAIR[:rows], PAIR_SCORES[:rows], SAME[:rows], max_total=cap)
    assert keep.dtype == np.dtype(np.int64)
    assert decayed.dtype == np.dtype(np.float32)
    assert keep.tolist() == list(range(rows))
    empty = native.soft_nms_batch(PAIR[:0], PAIR_SCORES[:0], SAME[:0], np.zeros(1, np.int64))
    assert [len(part) for part in empty] == [0, 0, 1]


def test_inputs_are_neither_changed_nor_required_to_be_contiguous() -> None:
    wide = np.zeros((3, 8), np.float32)
    wide[:, ::2] = PAIR
    wide.flags.writeable = False
    scores = np.repeat(PAIR_SCORES, 2)[::2]
    keep, _ = soft_nms(wide[:, ::2], scores, SAME)
    assert keep.tolist() == [0, 2, 1]
    assert scores.tolist() == PAIR_SCORES.tolist()


def shifted(array: Any) -> Any:
    """The same values a byte away from where their type wants to be."""
    memory = np.empty(array.nbytes + 1, np.uint8)[1:]
    moved = memory.view(array.dtype).reshape(array.shape)
    moved[...] = array
    assert not moved.flags.aligned
    return moved


def test_inputs_may_lie_anywhere_and_reach_the_kernels_where_they_belong() -> None:
    """Columns of files that are mapped begin wherever those have them."""
    keep, _ = soft_nms(shifted(PAIR), shifted(PAIR_SCORES), shifted(SAME))
    assert keep.tolist() == [0, 2, 1]
    found = checked_array("boxes", shifted(PAIR), np.float32, ndim=2)
    assert found.flags.aligned
    assert found.tolist() == PAIR.tolist()
    assert checked_array("boxes", PAIR, np.float32, ndim=2) is PAIR


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": PAIR.tolist()}, TypeError, "boxes is a list; it must be a NumPy array"),
        ({"boxes": PAIR.astype(float)}, TypeError, r"boxes is float64.*astype\(np.float32\)"),
        ({"scores": PAIR_SCORES.astype(np.float16)}, TypeError, "scores is float16"),
        ({"labels": SAME.astype(np.int32)}, TypeError, "labels is int32; it must be int64"),
        ({"boxes": PAIR[:, :3]}, ValueError, r"boxes has shape \(3, 3\); it must be \(M, 4\)"),
        ({"boxes": PAIR.ravel()}, ValueError, "must have 2 dimension"),
        ({"scores": PAIR_SCORES[:2]}, ValueError, "scores has 2 entries for 3 boxes"),
        ({"labels": SAME[:1]}, ValueError, "labels has 1 entries for 3 boxes"),
        ({"boxes": _boxes((0, 0, 1, 1), (0, math.nan, 1, 1), (0, 0, 1, 1))}, ValueError,
         r"boxes\[1\] = \[0.0, nan, 1.0, 1.0\] is not finite"),
        ({"boxes": _boxes((0, 0, 1, 1), (0, 0, 1, 1), (5, 0, 1, 1))}, ValueError,
         r"boxes\[2\] = .* is inverted"),
        ({"boxes": _boxes((0, 0, 2e18, 1), (0, 0, 1, 1), (0, 0, 1, 1))}, ValueError,
         r"boxes\[0\] = .* beyond 1e\+18"),
        ({"scores": _scores(1, math.nan, 1)}, ValueError, r"scores\[1\] = nan is not finite"),
        ({"method": "linaer"}, ValueError, "did you mean 'linear'"),
        ({"iou_threshold": 1.5}, ValueError, "iou_threshold=1.5"),
        ({"iou_threshold": math.nan}, ValueError, "iou_threshold=nan"),
        ({"sigma": 0.0}, ValueError, "sigma=0.0"),
        ({"sigma": 1e-60}, ValueError, "sigma=1e-60"),
        ({"score_threshold": -0.1}, ValueError, "score_threshold=-0.1"),
        ({"top_k_per_class": 0}, ValueError, "top_k_per_class=0"),
        ({"max_per_class": 0}, ValueError, "max_per_class=0"),
        ({"max_total": -1}, ValueError, "max_total=-1"),
        ({"threads": 0}, ValueError, "threads=0"),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"boxes": PAIR, "scores": PAIR_SCORES, "labels": SAME, **change}
    with pytest.raises(error, match=message):
        soft_nms(**arguments)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [([], "got nothing"), ([0, 2], r"got \[0, 2\]"), ([1, 3], "got"), ([0, 2, 1, 3], "not fall")],
)
def test_refused_offsets(offsets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.soft_nms_batch(PAIR, PAIR_SCORES, SAME, np.array(offsets, dtype=np.int64))


def test_exp_is_that_of_exact_arithmetic_rounded_once() -> None:
    x = -np.concatenate([np.linspace(0, 110, 200_001), np.geomspace(1e-30, 110, 100_001)])
    x = x.astype(np.float32).astype(np.float64)
    exact = np.exp(x.astype(np.longdouble))
    if np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("long double has no more digits than double here")
    got = exp_nonpositive(x)
    assert np.max(np.abs(got - exact) / exact) < 5e-16
    assert (got.astype(np.float32) == exact.astype(np.float32)).all()
    assert exp_nonpositive(np.array([0.0, -np.inf])).astype(np.float32).tolist() == [1.0, 0.0]


def _crowd(count: int, classes: int) -> tuple[Float32, Float32, Int64]:
    rng = np.random.default_rng(11)
    corners = rng.uniform(0, 30_000, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + np.float32(20)], 1)
    return boxes, rng.uniform(0, 1, count).astype(np.float32), rng.integers(0, classes, count)


def test_memory_grows_with_boxes_not_with_pairs(serving: object) -> None:
    if serving is reference:
        crowd = _crowd(4000, 1)
        tracemalloc.start()
        soft_nms(*crowd)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4000 * 400  # bytes; a matrix of pairs would take 64 million
        return
    resource = pytest.importorskip("resource")
    top, everything = _crowd(1_000_000, 1), _crowd(1_000_000, 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(soft_nms(*top, method="gaussian", max_total=100)[0]) == 100
    assert len(nms(*everything, iou_threshold=0.5)) > 990_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_other_threads_run_meanwhile(serving: object) -> None:
    if serving is reference:
        pytest.skip("NumPy holds the lock between its calls")
    crowd = _crowd(60_000, 1)
    ticks = 0
    over = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not over.is_set():
            ticks += 1
            time.sleep(0.001)

    ticker = threading.Thread(target=tick)
    ticker.start()
    ticks_before = ticks
    soft_nms(*crowd, method="gaussian", threads=1)
    ticks_during = ticks - ticks_before
    over.set()
    ticker.join()
    assert ticks_during > 5


def test_threads_granted_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert choice.default_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "not a number")
    free = choice.default_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert free == choice.default_threads() >= 1
