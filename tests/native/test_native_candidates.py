"""Collection of candidates against hand-written cases and torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import native
from native import reference
from native.rules import Float32

try:
    _compiled: Any = importlib.import_module("native._core")
except ImportError:
    _compiled = None


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
    """Both implementations in turn behind the public function."""
    monkeypatch.setattr("native.candidates.kernels", lambda: request.param)


#: Two images, three priors, two classes; box p of image n is (n, p, n + 1, p + 1).
BOXES = np.array([[[n, p, n + 1, p + 1] for p in range(3)] for n in range(2)], dtype=np.float32)
SCORES = np.array(
    [[[0.1, 0.6], [0.5, 0.2], [0.7, 0.8]], [[0.0, 0.1], [0.2, 0.9], [0.3, 0.5]]], dtype=np.float32
)


def test_scores_strictly_above_by_image_prior_and_class() -> None:
    found = native.collect(BOXES, SCORES, threshold=0.5)
    assert found.scores.tolist() == SCORES[[0, 0, 0, 1], [0, 2, 2, 1], [1, 0, 1, 1]].tolist()
    assert found.labels.tolist() == [1, 0, 1, 1]
    assert found.boxes.tolist() == BOXES[[0, 0, 0, 1], [0, 2, 2, 1]].tolist()
    assert found.offsets.tolist() == [0, 3, 4]
    assert [part.dtype.name for part in found] == ["float32", "float32", "int64", "int64"]


def test_a_box_for_each_class() -> None:
    boxes = np.arange(48, dtype=np.float32).reshape(2, 3, 2, 4)
    found = native.collect(boxes, SCORES, threshold=0.6)  # 0.6 itself is not above it
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes.tolist() == boxes[[0, 0, 1], [2, 2, 1], [0, 1, 1]].tolist()


def test_what_a_diverged_network_gives_is_left_out() -> None:
    boxes, scores = BOXES.copy(), SCORES.copy()
    scores[0, 0, 1] = math.nan
    boxes[0, 2, 3] = math.inf
    found = native.collect(boxes, scores, threshold=0.5)
    assert (found.labels.tolist(), found.offsets.tolist()) == ([1], [0, 0, 1])


def _dense(seed: int) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (3, 700, 4)).astype(np.float32)
    logits = rng.normal(0, 1, (3, 700, 21)).astype(np.float32)
    return corners, logits


@pytest.mark.parametrize("seed", range(3))
def test_what_torch_finds_in_a_slice_without_background(seed: int) -> None:
    boxes, logits = _dense(seed)
    scores = logits[:, :, 1:]
    image, prior, label = (torch.tensor(scores) > 1.2).nonzero().unbind(1)
    found = native.collect(boxes, scores, threshold=1.2)
    assert found.labels.tolist() == label.tolist()
    assert found.scores.tolist() == scores[image, prior, label].tolist()
    assert found.boxes.tolist() == boxes[image, prior].tolist()
    assert np.diff(found.offsets).tolist() == torch.bincount(image, minlength=3).tolist()


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[:, ::2],
        lambda array: array[::-1],
        lambda array: array[:, :, ::3],
        np.asfortranarray,
        lambda array: np.broadcast_to(array[:1], array.shape),
    ],
)
def test_strides_change_nothing(view: Callable[[Float32], Float32]) -> None:
    boxes, logits = _dense(0)
    scores = view(logits)
    boxes = boxes[:, : scores.shape[1]]
    found = native.collect(boxes, scores, threshold=1.0)
    expected = native.collect(boxes.copy(), np.array(scores, order="C"), threshold=1.0)
    assert len(expected.scores) > 100
    for have, want in zip(found, expected, strict=True):
        assert np.array_equal(have, want)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 0)])
def test_nothing_to_search(shape: tuple[int, int, int]) -> None:
    found = native.collect(np.zeros((*shape[:2], 4), np.float32), np.ones(shape, np.float32),
                           threshold=0.5)  # fmt: skip
    assert found.boxes.shape == (0, 4)
    assert found.offsets.tolist() == [0] * (shape[0] + 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": SCORES.astype(float)}, TypeError, "scores is float64"),
        ({"scores": SCORES[0]}, ValueError, "scores has shape .* 3 dimension"),
        ({"scores": SCORES.tolist()}, TypeError, "scores is a list"),
        ({"boxes": BOXES[:1]}, ValueError, r"boxes has shape \(1, 3, 4\) for scores of shape"),
        ({"boxes": BOXES[..., None, :]}, ValueError, r"or \(2, 3, 2, 4\) with a box for each"),
        ({"boxes": BOXES.astype(int)}, TypeError, "boxes is int64"),
        ({"threshold": math.nan}, ValueError, "threshold=nan"),
        ({"threads": 0}, ValueError, "threads=0"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"boxes": BOXES, "scores": SCORES, "threshold": 0.5, **change}
    with pytest.raises(error, match=message):
        native.collect(**arguments)
