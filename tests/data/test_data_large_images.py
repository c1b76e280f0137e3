"""Images above the usual limit: refused, or read where a larger one is allowed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.config.schema.data import TilesConfig
from orchestrator.data.decode import (
    MAX_PIXELS,
    Decoding,
    TooManyPixelsError,
    read_header,
    read_image,
)
from orchestrator.data.doctor.examine import examine
from orchestrator.data.images import image_pixels
from orchestrator.data.readers.split import read_splits
from orchestrator.data.tiling import tiled, tiles_of


def grey(path: Path, height: int, width: int) -> None:
    """A PNG of one bit a pixel: small on disk, whatever its size."""
    image = Image.new("1", (width, height))
    image.paste(1, (width - 40, height - 40, width - 10, height - 10))
    image.save(path)


def test_the_limit_can_be_raised(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey(path, 300, 500)
    small = Decoding(max_pixels=149_999)
    with pytest.raises(TooManyPixelsError, match="500x300 pixels, allowed are 149999"):
        read_image(path, decoding=small)
    assert read_image(path, decoding=Decoding(max_pixels=150_000)).shape == (300, 500, 3)
    with pytest.raises(TooManyPixelsError):
        read_image(path, decoding=Decoding(), max_pixels=10)


def test_headers_beyond_pillows_limit_are_read_and_decoding_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    grey(path, 14_000, 14_000)
    assert 2 * MAX_PIXELS < 14_000**2
    header = read_header(path)
    assert (header.height, header.width, header.kind) == (14_000, 14_000, "PNG")
    with pytest.raises(TooManyPixelsError, match=f"14000x14000 pixels, allowed are {MAX_PIXELS}"):
        read_image(path)
    bomb = tmp_path / "bomb.png"
    data = bytearray(path.read_bytes())
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb.write_bytes(bytes(data))
    with pytest.raises(Exception, match=r"more than|not an image"):
        read_header(bomb)


@pytest.mark.slow
def test_an_image_of_a_hundred_megapixels_in_tiles(tmp_path: Path) -> None:
    side = 10_000
    image = np.zeros((side, side, 3), np.uint8)
    image[9000:9012, 7000:7012] = 255
    cv2.imwrite(str(tmp_path / "a.jpg"), image)
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [7000, 9000, 12, 12], "area": 144}
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": side, "height": side}],
        "annotations": [box | {"iscrowd": 0}],
        "categories": [{"id": 1, "name": "spot"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))
    split = SplitConfig(images=".", annotations="a.json")
    values = {"root": str(tmp_path), "train": split, "val": split}
    refused = examine(DataConfig(**values)).report
    assert refused.exit_code == 65
    config = DataConfig(
        **values,
        max_pixels=side * side,
        tiles=TilesConfig(size=(500, 500), overlap=20),
        keep_decoded=1.0,
        cache=str(tmp_path / "cache"),
    )
    assert examine(config).report.exit_code == 0
    train = read_splits(config)[0].dataset
    assert config.tiles is not None
    tiles = tiled(train, tiles_of(config.tiles))
    index = int(np.flatnonzero(np.diff(tiles.offsets))[0])
    x, y, w, h = tiles.boxes_xywh[tiles.offsets[index]].astype(int)
    pixels = image_pixels(tiles, index)
    assert pixels.shape == (500, 500, 3)
    assert pixels[y : y + h, x : x + w].min() > 150
    assert pixels.sum(dtype=np.int64) < 255 * 3 * 400
