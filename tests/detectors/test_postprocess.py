from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.ops import batched_nms

from detectors.config import PostprocessConfig
from detectors.postprocess import View, detections_of, postprocess
from detectors.structures import Candidates

Row = tuple[int, int, float, list[float]]


def iou(first: list[float], second: list[float], one: float) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0]) + one
    height = min(first[3], second[3]) - max(first[1], second[1]) + one
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0] + one) * (b[3] - b[1] + one) for b in (first, second)]
    return shared / (sum(areas) - shared)


def naive(boxes: np.ndarray, scores: np.ndarray, config: PostprocessConfig) -> list[Row]:
    """One image by the textbook: (prior, label, score, box) of each detection, best first."""
    pool = [
        [a, k, float(scores[a, k]), boxes[a, k].tolist()]
        for a in range(len(scores))
        for k in range(scores.shape[1])
        if scores[a, k] > config.score_threshold
    ]

    def group(row: Any) -> int:
        return 0 if config.class_agnostic else row[1]

    pool.sort(key=lambda row: (-row[2], row[0]))
    pool = [
        row
        for at, row in enumerate(pool)
        if sum(group(other) == group(row) for other in pool[:at])
        < (config.top_k_per_class or len(pool))
    ]
    done: list[Any] = []
    while pool:
        top = max(pool, key=lambda row: (row[2], -row[0], -row[1]))
        pool.remove(top)
        done.append(top)
        rest = []
        for row in pool:
            if group(row) == group(top):
                overlap = iou(top[3], row[3], float(config.plus_one))
                if config.nms == "hard":
                    if overlap > config.iou_threshold:
                        continue
                else:
                    if config.nms == "soft_gaussian":
                        row[2] *= math.exp(-(overlap**2) / config.sigma)
                    elif overlap > config.iou_threshold:
                        row[2] *= 1 - overlap
                    if row[2] < config.soft_score_threshold:
                        continue
            rest.append(row)
        pool = rest
    kept, seen = [], dict.fromkeys(range(scores.shape[1]), 0)
    for row in done:
        seen[group(row)] += 1
        if config.max_per_class is None or seen[group(row)] <= config.max_per_class:
            kept.append(tuple(row))
    return kept[: config.max_per_image]


def scene(seed: int, *, per_class: bool) -> Candidates:
    rng = np.random.default_rng(seed)
    images, priors, classes = 3, 60, 3
    shape = (images, priors, classes, 2) if per_class else (images, priors, 2)
    low = rng.random(shape) * 40
    boxes = np.concatenate([low, low + 5 + rng.random(shape) * 30], axis=-1)
    scores = rng.random((images, priors, classes)) ** 2
    scores[1] = 0.0
    return Candidates(
        boxes=torch.from_numpy(boxes).float(), scores=torch.from_numpy(scores).float()
    )


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("nms", ["hard", "soft_linear", "soft_gaussian"])
@pytest.mark.parametrize(
    "caps",
    [(None, None, None), (None, 4, None), (None, None, 7), (None, 4, 9), (12, None, 20)],
    ids=str,
)
def test_detections_equal_the_textbook(
    nms: Any,
    plus_one: bool,
    class_agnostic: bool,
    per_class: bool,
    caps: tuple[int | None, int | None, int | None],
) -> None:
    config = PostprocessConfig(
        score_threshold=0.2,
        nms=nms,
        iou_threshold=0.4,
        sigma=0.3,
        soft_score_threshold=0.05,
        plus_one=plus_one,
        top_k_per_class=caps[0],
        max_per_class=caps[1],
        max_per_image=caps[2],
        class_agnostic=class_agnostic,
    )
    candidates = scene(7, per_class=per_class)
    found = postprocess(candidates, config)
    assert len(found) == 3
    assert len(found[1].scores) == 0
    for image in (0, 2):
        boxes = candidates.boxes[image].numpy()
        if not per_class:
            boxes = np.repeat(boxes[:, None], 3, axis=1)
        want = naive(boxes, candidates.scores[image].numpy(), config)
        assert want
        assert found[image].labels.tolist() == [row[1] for row in want]
        np.testing.assert_allclose(found[image].scores, [row[2] for row in want], rtol=1e-5)
        np.testing.assert_array_equal(found[image].boxes, np.float32([row[3] for row in want]))


def test_plain_hard_suppression_equals_torchvision() -> None:
    candidates = scene(11, per_class=False)
    found = postprocess(
        candidates, PostprocessConfig(score_threshold=0.1, iou_threshold=0.5, max_per_image=None)
    )
    for image in range(3):
        prior, label = (candidates.scores[image] > 0.1).nonzero(as_tuple=True)
        boxes = candidates.boxes[image][prior]
        scores = candidates.scores[image][prior, label]
        keep = batched_nms(boxes, scores, label, 0.5)
        torch.testing.assert_close(found[image].boxes, boxes[keep])
        torch.testing.assert_close(found[image].scores, scores[keep])
        assert found[image].labels.tolist() == label[keep].tolist()


def test_the_score_threshold_is_strict() -> None:
    candidates = Candidates(
        boxes=torch.tensor([[[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 6.0, 6.0]]]),
        scores=torch.tensor([[[0.5], [0.25]]]),
    )
    assert len(postprocess(candidates, PostprocessConfig(score_threshold=0.5))[0].scores) == 0
    assert len(postprocess(candidates, PostprocessConfig(score_threshold=0.25))[0].scores) == 1


def test_equal_scores_come_in_the_order_of_priors_then_classes() -> None:
    boxes = torch.tensor([[[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(3)]])
    found = postprocess(Candidates(boxes, torch.full((1, 3, 2), 0.5)), PostprocessConfig())[0]
    assert found.boxes[:, 0].tolist() == [0.0, 0.0, 20.0, 20.0, 40.0, 40.0]
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_diverged_network_detects_nothing() -> None:
    rows = [[0, 0, math.nan, 1], [0, 0, 1, 1], [0, 0, math.inf, 1], [0, -1e19, 1, 1]]
    boxes = torch.tensor([rows]).float()
    scores = torch.tensor([[[0.9], [math.nan], [0.9], [0.9]]])
    found = postprocess(Candidates(boxes, scores), PostprocessConfig())[0]
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("shortlist", [None, 1])
def test_an_endless_score_is_no_detection(shortlist: int | None) -> None:
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [5.0, 5.0, 6.0, 6.0]]])
    scores = torch.tensor([[[torch.inf], [0.75]]])
    config = PostprocessConfig()
    view = View(Candidates(boxes, scores), config, shortlist=shortlist)
    (found,) = detections_of([view], config)
    assert found.scores.tolist() == [0.75]
    assert found.boxes.tolist() == [[5.0, 5.0, 6.0, 6.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_of_detections(dtype: torch.dtype) -> None:
    candidates = scene(3, per_class=False)
    half = Candidates(candidates.boxes.to(dtype).requires_grad_(), candidates.scores.to(dtype))
    for one in postprocess(half, PostprocessConfig()):
        assert one.boxes.dtype == one.scores.dtype == torch.float32
        assert one.labels.dtype == torch.int64
        assert not one.boxes.requires_grad


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("score_threshold", 1.5),
        ("iou_threshold", -0.1),
        ("sigma", 0),
        ("max_per_class", 0),
        ("max_per_image", 2.5),
        ("nms", "soft"),
        ("top_k", 3),
        ("top_k_per_class", 0),
    ],
)
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        PostprocessConfig.model_validate({field: value})
