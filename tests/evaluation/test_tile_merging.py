"""Detections of tiles in the whole image: none doubled, none cut at a seam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detectors.config import PostprocessConfig
from orchestrator.data.dataset import Tiling
from orchestrator.data.tiling import Tiles
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.tile_merging import merge_tiles
from orchestrator.training.predictor import in_whole_images

SIZE = (300, 400)
TILES = Tiles((120, 120), overlap=30)


def tiling(images: int = 1) -> Tiling:
    grid = TILES.windows(*SIZE)
    return Tiling(
        images=np.repeat(np.arange(images), len(grid)),
        image_ids=np.repeat(np.arange(images) + 70, len(grid)),
        windows=np.tile(grid, (images, 1)),
        sizes=np.tile(np.array(SIZE, np.int32), (images * len(grid), 1)),
    )


def seen(objects: list[tuple[float, float, float, float]], jitter: float, seed: int) -> Detections:
    """What a good detector finds: of each object what a tile shows, cut at the edges."""
    rng = np.random.default_rng(seed)
    grid = TILES.windows(*SIZE)
    rows = []
    for tile, window in enumerate(grid.tolist()):
        for label, (x0, y0, x1, y1) in enumerate(objects):
            low = np.maximum((x0, y0), window[:2])
            high = np.minimum((x1, y1), window[2:])
            share = np.prod(np.maximum(high - low, 0)) / ((x1 - x0) * (y1 - y0))
            if share < 0.2:
                continue
            box = np.concatenate([low, high]) + rng.uniform(-jitter, jitter, 4)
            box = np.clip(box, np.tile(window[:2], 2), np.tile(window[2:], 2))
            box -= np.tile(window[:2], 2)
            rows.append((tile, label % 2, box, rng.uniform(0.5, 1.0)))
    return Detections(
        images=np.arange(len(grid)),
        image_ids=np.array([row[0] for row in rows], np.int64),
        labels=np.array([row[1] for row in rows], np.int64),
        boxes=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[3] for row in rows], np.float32),
    )


@pytest.mark.parametrize("seed", range(30))
def test_every_object_is_found_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objects: list[tuple[float, float, float, float]] = []
    while len(objects) < 25:
        # From a tenth of a tile to more than a tile and a half.
        w, h = rng.uniform(12, 30, 2) if len(objects) % 5 else rng.uniform(60, 190, 2)
        x, y = rng.uniform(0, SIZE[1] - w), rng.uniform(0, SIZE[0] - h)
        box = (x, y, x + w, y + h)
        if all(apart(box, other) for other in objects):
            objects.append(box)
        elif len(objects) >= 12:
            break
    found = merge_tiles(seen(objects, 1.0, seed), tiling(), iou=0.5)
    assert found.images.tolist() == [70]
    assert len(found) == len(objects)
    assert (np.diff(found.scores) <= 0).all()
    for label, box in enumerate(objects):
        overlaps = [
            overlap(box, one)
            for one, kind in zip(found.boxes.tolist(), found.labels.tolist(), strict=True)
            if kind == label % 2
        ]
        assert max(overlaps) > 0.7


def apart(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] > b[2] + 4 or b[0] > a[2] + 4 or a[1] > b[3] + 4 or b[1] > a[3] + 4


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)]
    return inter / (sum(areas) - inter)


def test_neighbours_stay_two() -> None:
    # Twelve pixels wide, two apart, over where tiles begin and end (columns 70, 120, 140, 190).
    objects = [(70.0 + 14 * i, 40.0, 82.0 + 14 * i, 52.0) for i in range(-3, 12)]
    found = merge_tiles(seen(objects, 0.5, 1), tiling(), iou=0.5, class_agnostic=True)
    assert len(found) == len(objects)


def test_by_hand() -> None:
    grid = TILES.windows(*SIZE).tolist()
    assert [window[0] for window in grid[:5]] == [0, 70, 140, 210, 280]
    # Whole in the first tile, a piece in the second, which scores higher: the whole one stays.
    found = Detections(
        images=np.array([0, 1]),
        image_ids=np.array([0, 1]),
        labels=np.array([0, 0]),
        boxes=np.array([[60, 10, 90, 40], [0, 10, 20, 40]], np.float32),
        scores=np.array([0.6, 0.9], np.float32),
    )
    whole = merge_tiles(found, tiling(), iou=0.5)
    assert whole.boxes.tolist() == [[60, 10, 90, 40]]
    assert whole.scores.tolist() == [pytest.approx(0.6)]
    # Wider than the overlap: cut in both, one box around both, with the better score.
    found = Detections(
        images=np.array([0, 1]),
        image_ids=np.array([0, 1]),
        labels=np.array([0, 0]),
        boxes=np.array([[50, 10, 120, 40], [0, 11, 80, 41]], np.float32),
        scores=np.array([0.6, 0.9], np.float32),
    )
    whole = merge_tiles(found, tiling(), iou=0.5)
    assert whole.boxes.tolist() == [[50, 10, 150, 41]]
    assert whole.scores.tolist() == [pytest.approx(0.9)]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [(0.9, 0), (0.8, 0), (0.7, 1), (0.6, 0), (0.5, 1)]),
        ({"max_per_class": 1}, [(0.9, 0), (0.7, 1)]),
        ({"max_per_class": 2}, [(0.9, 0), (0.8, 0), (0.7, 1), (0.5, 1)]),
        ({"max_per_class": 2, "max_per_image": 3}, [(0.9, 0), (0.8, 0), (0.7, 1)]),
        ({"max_per_class": 2, "class_agnostic": True}, [(0.9, 0), (0.8, 0)]),
    ],
    ids=str,
)
def test_limits_hold_for_whole_images(settings: dict[str, Any], kept: list[tuple]) -> None:
    # One or two boxes of each tile, in the middle of it, so that no tile is above a limit of two.
    found = Detections(
        images=np.arange(4),
        image_ids=np.array([0, 0, 1, 2, 3]),
        labels=np.array([0, 1, 0, 0, 1]),
        boxes=np.array([[40, 40, 50, 50], [20, 60, 30, 70], *[[60, 60, 70, 70]] * 3], np.float32),
        scores=np.array([0.6, 0.5, 0.8, 0.9, 0.7], np.float32),
    )
    whole = in_whole_images(found, tiling(), PostprocessConfig(**settings))
    assert whole.labels.tolist() == [label for _, label in kept]
    assert whole.scores.tolist() == pytest.approx([score for score, _ in kept])


def test_images_are_kept_apart_and_empty_ones_counted() -> None:
    tiles = len(TILES.windows(*SIZE))
    found = Detections(
        images=np.arange(2 * tiles),
        image_ids=np.array([tiles, 0]),
        labels=np.array([1, 0]),
        boxes=np.array([[20, 20, 40, 40], [20, 20, 40, 40]], np.float32),
        scores=np.array([0.5, 0.6], np.float32),
    )
    whole = merge_tiles(found, tiling(3), iou=0.5)
    assert whole.images.tolist() == [70, 71]
    assert whole.image_ids.tolist() == [70, 71]
    assert whole.labels.tolist() == [0, 1]
    nothing = merge_tiles(Detections.merge([]), tiling(), iou=0.5)
    assert len(nothing) == len(nothing.images) == 0
