"""Detections from a device's shortlist are those of all candidates, bit for bit and in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_detectors import build, variants
from torch import Tensor
from torch.nn import functional as F

import native
from detectors import postprocess as module
from detectors.boxes import map_to_original
from detectors.config import PostprocessConfig
from detectors.postprocess import SHORTLIST, Frames, View, detections_of
from detectors.registry import DETECTORS
from detectors.structures import Candidates, ImageDetections

METHODS: dict[str, native.Method] = {
    "hard": "hard",
    "soft_linear": "linear",
    "soft_gaussian": "gaussian",
}


def of_all(candidates: Candidates, config: PostprocessConfig) -> list[ImageDetections]:
    """Every candidate above the threshold, in the order of image, prior and class, suppressed."""
    boxes, scores = candidates
    images, priors, classes = scores.shape
    hits = torch.from_numpy(np.flatnonzero(scores.numpy() > config.score_threshold))
    rows = boxes.reshape(-1, 4)[hits // classes if boxes.dim() == 3 else hits]
    values = scores.reshape(-1)[hits]
    finite = rows.isfinite().all(1)
    rows, values, hits = rows[finite], values[finite], hits[finite]
    labels = hits % classes
    counts = torch.bincount(hits // (priors * classes), minlength=images)
    kept, decayed, offsets = native.soft_nms_batch(
        rows.numpy(),
        values.numpy(),
        (torch.zeros_like(labels) if config.class_agnostic else labels).numpy(),
        F.pad(counts.cumsum(0), (1, 0)).numpy(),
        method=METHODS[config.nms],
        iou_threshold=config.iou_threshold,
        sigma=config.sigma,
        score_threshold=0.0 if config.nms == "hard" else config.soft_score_threshold,
        plus_one=config.plus_one,
        top_k_per_class=config.top_k_per_class,
        max_per_class=config.max_per_class,
        max_total=config.max_per_image,
    )
    keep, sizes = torch.from_numpy(kept), np.diff(offsets).tolist()
    parts = zip(
        torch.split(rows[keep], sizes),
        torch.split(torch.from_numpy(decayed), sizes),
        torch.split(labels[keep], sizes),
        strict=True,
    )
    return [ImageDetections(*part) for part in parts]


def assert_same(found: list[ImageDetections], expected: list[ImageDetections]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for column, wanted in zip(mine, theirs, strict=True):
            assert torch.equal(column, wanted)


def frames(images: int) -> Frames:
    transforms = torch.rand(images, 4, dtype=torch.float64) * 2 + 0.3
    return Frames(transforms, torch.randint(100, 300, (images, 2)))


def crowd(images: int, priors: int, classes: int, *, per_class: bool, kind: str) -> Candidates:
    """Candidates that overlap a lot.

    Scores are ``peaked`` as a trained network's, ``flat`` as a fresh one's, or ``tied``: of few
    values, which many share.
    """
    shape = (images, priors, classes)
    low = torch.rand(*shape, 2) * 150 if per_class else torch.rand(images, priors, 2) * 150
    boxes = torch.cat([low, low + 10 + 60 * torch.rand(low.shape)], dim=-1)
    if kind == "peaked":
        scores = torch.sigmoid(torch.randn(shape) * 3 - 4)
    elif kind == "flat":
        scores = torch.softmax(torch.randn(images, priors, classes + 1) * 0.3, -1)[..., 1:]
    else:
        scores = (torch.rand(shape) * 9).floor() / 10
    return Candidates(boxes, scores.contiguous())


RECIPES: list[dict[str, Any]] = [
    {"score_threshold": 0.05},
    {"score_threshold": 0.01, "top_k_per_class": 40, "max_per_image": 200},
    {"score_threshold": 0.1, "max_per_class": 10, "max_per_image": None},
    {"score_threshold": 0.1, "nms": "soft_linear", "max_per_class": 5, "max_per_image": None},
    {"score_threshold": 0.02, "nms": "soft_gaussian", "max_per_image": 60},
    {"score_threshold": 0.05, "nms": "soft_linear", "max_per_image": None},
    {"score_threshold": 0.05, "class_agnostic": True, "max_per_class": 30},
    {"score_threshold": 0.2, "soft_score_threshold": 0.35, "nms": "soft_linear", "plus_one": True},
]


@pytest.mark.parametrize("kind", ["peaked", "flat", "tied"])
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("per_class", [False, True])
def test_a_shortlist_of_any_length_gives_what_all_candidates_give(
    kind: str, recipe: dict[str, Any], per_class: bool
) -> None:
    torch.manual_seed(3)
    config = PostprocessConfig(**recipe)
    network = crowd(3, 300, 4, per_class=per_class, kind=kind)
    where = frames(3)
    expected = of_all(Candidates(map_to_original(network.boxes, *where), network.scores), config)
    assert sum(len(one.scores) for one in expected) > 10
    assert_same(detections_of([View(network, config, frames=where)], config), expected)
    for length in (1, 30, 250, 1200):
        view = View(network, config, frames=where, shortlist=length)
        assert_same(detections_of([view], config), expected)


def test_a_list_that_settles_an_image_is_not_made_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    config = PostprocessConfig(score_threshold=0.05, max_per_image=20)
    network = crowd(2, 3000, 4, per_class=False, kind="peaked")
    monkeypatch.setattr(View, "longer", None)
    short = detections_of([View(network, config, shortlist=200)], config)
    assert_same(short, of_all(network, config))


def test_numbers_that_are_none_are_no_detections() -> None:
    torch.manual_seed(3)
    network = crowd(2, 200, 3, per_class=True, kind="peaked")
    network.scores[0, :50] = torch.nan
    network.boxes[0, 50:90] = torch.nan
    network.boxes[1, :120, :, 2] = torch.inf
    config = PostprocessConfig(score_threshold=0.01, max_per_image=30)
    expected = of_all(network, config)
    for length in (5, 40, 600):
        assert_same(detections_of([View(network, config, shortlist=length)], config), expected)
    nothing = Candidates(network.boxes, torch.full_like(network.scores, torch.nan))
    (first, second) = detections_of([View(nothing, config, shortlist=9)], config)
    assert len(first.scores) == len(second.scores) == 0


@pytest.mark.parametrize("lengths", [(10, 10), (3, 500), (600, 600)])
def test_views_are_suppressed_together(lengths: tuple[int, int]) -> None:
    torch.manual_seed(5)
    config = PostprocessConfig(score_threshold=0.05, max_per_image=25)
    parts = [crowd(2, 150, 3, per_class=False, kind=kind) for kind in ("peaked", "tied")]
    together = Candidates(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))
    views = [
        View(part, config, shortlist=length) for part, length in zip(parts, lengths, strict=True)
    ]
    assert_same(detections_of(views, config), of_all(together, config))
    assert_same(
        detections_of([View(part, config) for part in parts], config), of_all(together, config)
    )


@pytest.mark.parametrize("fields", variants())
def test_every_detectors_own_recipe(fields: dict[str, Any]) -> None:
    """Raw outputs of a fresh network, then with logits spread as a trained one's are."""
    model = build(fields).eval()
    images = torch.randint(0, 256, (2, 3, *model.input_size), dtype=torch.uint8)
    with torch.inference_mode():
        raw = model(images)
    where = frames(2)
    config = model_config(fields)
    for spread in (1.0, 40.0):
        scaled = raw | {"cls": raw["cls"] * spread} if "cls" in raw else raw
        with torch.inference_mode():
            network = Candidates(*(column.clone() for column in model.decode(scaled)))
        mapped = map_to_original(network.boxes, *where)
        expected = of_all(Candidates(mapped, network.scores), config)
        for length in (20, 900, SHORTLIST):
            view = View(network, config, frames=where, shortlist=length)
            assert_same(detections_of([view], config), expected)


def model_config(fields: dict[str, Any]) -> PostprocessConfig:
    return DETECTORS[fields["name"]].config.model_validate(fields).postprocess


@pytest.mark.parametrize("classes", [1, 3, 80, 91])
def test_a_list_is_less_than_100_kilobytes_an_image(classes: int) -> None:
    copied: list[int] = []

    def to_host(tensors: Any) -> Any:
        copied.append(sum(t.numel() * t.element_size() for t in tensors))
        return module._copy_now(tensors)

    scores: Tensor = torch.zeros(2, 8732, classes)
    candidates = Candidates(torch.zeros(2, 8732, 4), scores)
    View(candidates, PostprocessConfig(), to_host=to_host, shortlist=SHORTLIST)
    assert copied[0] <= 2 * 100_000
