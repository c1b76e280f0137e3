"""Tiles: where they lie, which boxes they have, their pixels, and batches made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.config.schema.data import TilesConfig
from orchestrator.data import images
from orchestrator.data.dataset import Dataset
from orchestrator.data.images import image_pixels
from orchestrator.data.readers.split import read_split, read_splits
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.stream.local import LocalStream
from orchestrator.data.tiling import Tiles, boxes_in_no_tile, tiled
from orchestrator.errors import ConfigError
from tests.support.data_cases import assert_same_batch, textured, write_coco, write_image

pytestmark = pytest.mark.filterwarnings("error")


def test_windows_by_hand() -> None:
    tiles = Tiles((100, 80), overlap=20)
    # Height 100: one row. Width 200 = 80 + 2 * 60: three columns, 60 apart.
    expected = [[0, 0, 80, 100], [60, 0, 140, 100], [120, 0, 200, 100]]
    assert tiles.windows(100, 200).tolist() == expected
    # One pixel more needs a fourth column; the spare room is shared out.
    assert tiles.windows(100, 201)[:, 0].tolist() == [0, 40, 81, 121]
    assert tiles.windows(30, 50).tolist() == [[0, 0, 50, 30]]
    assert tiles.windows(101, 80).tolist() == [[0, 0, 80, 100], [0, 1, 80, 101]]


@pytest.mark.parametrize("seed", range(20))
def test_windows_cover_and_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(10, 90)), int(rng.integers(10, 90)))
    overlap = int(rng.integers(0, min(size)))
    height, width = (int(n) for n in rng.integers(1, 400, 2))
    windows = Tiles(size, overlap).windows(height, width)
    seen = np.zeros((height, width), np.int64)
    for left, top, right, bottom in windows.tolist():
        assert (bottom - top, right - left) == (min(height, size[0]), min(width, size[1]))
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    for axis in (0, 1):
        starts = np.unique(windows[:, axis])
        ends = np.unique(windows[:, axis + 2])
        assert (ends[:-1] - starts[1:] >= overlap).all()


def test_tiles_without_number_are_refused(config: DataConfig) -> None:
    data = read_split(config, config.train).dataset
    assert Tiles((2, 2), 1).grid(40, 50) == (39, 49)
    assert len(Tiles((2, 2), 1).windows(40, 50)) == 39 * 49
    large = replace(data, heights=data.heights * 100, widths=data.widths * 100)
    with pytest.raises(ConfigError, match=r"9x8 pixels .* tiles, allowed are 16384 an image"):
        tiled(large, Tiles((8, 9), 0))
    Tiles((8, 8), 0).require_few(1024, 1024, "exactly 128 x 128")
    with pytest.raises(ConfigError, match=r"1025x1024 .* 128 rows of 129 = 16512 tiles"):
        Tiles((8, 8), 0).require_few(1024, 1025, "a.png")


def test_boxes_that_no_tile_shows_enough_of(config: DataConfig) -> None:
    data = read_split(config, config.train).dataset
    boxes = data.boxes_xywh.copy()
    boxes[3] = (0, 0, 49, 39)
    data = replace(data, boxes_xywh=boxes)
    assert boxes_in_no_tile(data, Tiles((30, 30), 20)).tolist() == [3]
    assert not len(boxes_in_no_tile(data, Tiles((30, 30), 20, inside=0.1)))


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    write_coco(tmp_path, 3, boxes=5, seed=4)
    split = SplitConfig(images="images", annotations="instances.json")
    tiles = TilesConfig(size=(40, 50), overlap=10)
    return DataConfig(root=str(tmp_path), train=split, val=split, tiles=tiles)


def test_tiles_have_their_pixels_and_boxes(config: DataConfig) -> None:
    whole = read_split(config, config.train).dataset
    data = tiled(whole, Tiles((40, 50), 10, inside=0.5))
    assert data.tiling is not None
    assert len(set(data.image_ids.tolist())) == len(data) > len(whole)
    number = 0
    for image in range(len(whole)):
        pixels = image_pixels(whole, image)
        grid = Tiles((40, 50), 10).windows(*pixels.shape[:2]).tolist()
        boxes = whole.boxes_xywh[whole.boxes_of(image)]
        for left, top, right, bottom in grid:
            assert (image_pixels(data, number) == pixels[top:bottom, left:right]).all()
            assert data.files[number] == whole.files[image]
            expected = []
            for x, y, w, h in boxes.tolist():
                x0, x1 = max(x, left), min(x + w, right)
                y0, y1 = max(y, top), min(y + h, bottom)
                if x1 > x0 and y1 > y0 and (x1 - x0) * (y1 - y0) >= 0.5 * w * h * (1 - 1e-9):
                    expected.append([x0 - left, y0 - top, x1 - x0, y1 - y0])
            found = data.boxes_xywh[data.boxes_of(number)]
            assert found == pytest.approx(np.array(expected).reshape(-1, 4))
            number += 1
    assert number == len(data)


def plan_of(config: DataConfig, workers: int = 1) -> BatchPlan:
    train, val = (read.dataset for read in read_splits(config))
    return BatchPlan.from_config(
        config, train, val, seed=1, epochs=2, batch_size=4, workers=workers, input_size=(32, 40)
    )


def test_batches_of_tiles_are_exact(config: DataConfig, tmp_path: Path) -> None:
    plan = plan_of(config)
    steps = plan.schedule.total_steps
    assert steps >= 4
    batches = list(LocalStream(plan).train_batches(0, steps))
    assert any(batch.valid.any() for batch in batches)
    for batch, again in zip(batches[2:], LocalStream(plan).train_batches(2, steps), strict=True):
        assert_same_batch(batch, again)
    halves = [
        list(LocalStream(plan_of(config, 2), rank=rank, world=2).train_batches(0, steps))
        for rank in (0, 1)
    ]
    for first, second, batch in zip(*halves, batches, strict=True):
        assert (np.concatenate([first.images, second.images]) == batch.images).all()
    # What a node keeps of decoded images changes no bit.
    kept = config.model_copy(
        update={"keep_decoded": 1.0, "cache": str(tmp_path / "cache"), "tiles": config.tiles}
    )
    for _ in range(2):
        made = LocalStream(plan_of(kept)).train_batches(0, steps)
        for batch, again in zip(batches, made, strict=True):
            assert_same_batch(batch, again)
    assert len(list((tmp_path / "cache" / "decoded").glob("*.npy"))) == 3


def test_evaluation_sees_every_tile_once(config: DataConfig) -> None:
    plan = plan_of(config)
    ids = [i for batch in LocalStream(plan).eval_batches() for i in batch.image_ids.tolist()]
    assert sorted(i for i in ids if i >= 0) == list(range(len(plan.val)))


def kept(folder: Path, gib: float) -> Dataset:
    """Images that are kept decoded."""
    write_coco(folder / "set", 2, seed=1)
    split = SplitConfig(images="images", annotations="instances.json")
    config = DataConfig(
        root=str(folder / "set"),
        train=split,
        val=split,
        keep_decoded=gib,
        cache=str(folder / "cache"),
    )
    return read_split(config, split).dataset


def test_a_kept_image_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = kept(tmp_path, 1.0)
    first = image_pixels(data, 0)
    again = image_pixels(data, 0)
    assert again.flags.writeable
    assert (first == again).all()
    entries = list((tmp_path / "cache" / "decoded").glob("*.npy"))
    assert len(entries) == 1
    # Another file of that name is another image; a damaged entry is none.
    height, width = int(data.heights[0]), int(data.widths[0])
    write_image(data.path(0), textured(height, width, 99))
    other = image_pixels(data, 0)
    assert (other != first).any()
    for entry in (tmp_path / "cache" / "decoded").glob("*.npy"):
        entry.write_bytes(b"damaged")
    assert (image_pixels(data, 0) == other).all()
    # Another decoder may make other pixels of it.
    before = set((tmp_path / "cache" / "decoded").glob("*.npy"))
    monkeypatch.setattr(images, "_decoder", lambda: "of another version")
    assert (image_pixels(data, 0) == other).all()
    assert len(set((tmp_path / "cache" / "decoded").glob("*.npy")) - before) == 1


def test_a_full_cache_keeps_no_more(tmp_path: Path) -> None:
    data = kept(tmp_path, 1e-6)
    assert image_pixels(data, 0).size > 1074
    assert not list((tmp_path / "cache" / "decoded").iterdir())
