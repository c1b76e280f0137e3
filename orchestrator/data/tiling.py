"""Large images as overlapping tiles, each of which is an image of its own to the network."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset, Tiling
from orchestrator.errors import ConfigError, printable

if TYPE_CHECKING:
    from orchestrator.config.schema import TilesConfig


#: Of one image; each is a line of several tables.
_MOST_TILES = 1 << 14


@dataclass(frozen=True)
class Tiles:
    """How images are cut.

    Attributes:
        size: (height, width) of a tile in pixels; a smaller side of an image is not cut.
        overlap: pixels that neighbours share at least; an object no larger is whole in one of them.
        inside: share of a box's area from which it is learnt in a tile.
    """

    size: tuple[int, int]
    overlap: int
    inside: float = 0.5

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tiles of an image."""
        rows, columns = (
            _count(side, tile, self.overlap)
            for side, tile in zip((height, width), self.size, strict=True)
        )
        return rows, columns

    def require_few(self, height: int, width: int, image: str) -> None:
        """Refuse to cut an image into tiles without number.

        Args:
            height, width: of the image in pixels.
            image: its name, for the message.

        Raises:
            ConfigError: it would be cut into more than 16,384.
        """
        rows, columns = self.grid(height, width)
        if rows * columns > _MOST_TILES:
            raise ConfigError(
                f"data.tiles, --tiles: {self.size[1]}x{self.size[0]} pixels with an overlap of "
                f"{self.overlap} cut {printable(image)}, {width}x{height} pixels, into {rows} rows "
                f"of {columns} = {rows * columns} tiles, allowed are {_MOST_TILES} an image. Next: "
                "make the tiles larger, or their overlap smaller"
            )

    def windows(self, height: int, width: int) -> NDArray[np.int32]:
        """(t, 4) int32 ``left, top, right, bottom`` of the tiles of an image, row by row.

        They cover it and are spread evenly; all have the same size.
        """
        rows = _starts(height, self.size[0], self.overlap)
        columns = _starts(width, self.size[1], self.overlap)
        tall, wide = min(height, self.size[0]), min(width, self.size[1])
        return np.array(
            [(left, top, left + wide, top + tall) for top in rows for left in columns], np.int32
        )


def _count(length: int, tile: int, overlap: int) -> int:
    return 1 if length <= tile else math.ceil((length - overlap) / (tile - overlap))


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = _count(length, tile, overlap)
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tiles_of(config: TilesConfig) -> Tiles:
    """How ``data.tiles`` cuts images."""
    return Tiles(config.size, config.overlap, config.inside)


def require_few_tiles(data: Dataset, tiles: Tiles) -> None:
    """:meth:`Tiles.require_few` for each image of a data set."""
    for index, (height, width) in enumerate(zip(data.heights, data.widths, strict=True)):
        tiles.require_few(int(height), int(width), data.files[index])


def tiled(data: Dataset, tiles: Tiles) -> Dataset:
    """The tiles of all images, in their order, with ids of their own from 0.

    A tile has the boxes of which at least ``tiles.inside`` lies in it, cut at its edges; crowds, of
    which any part does.

    Raises:
        ConfigError: an image would be cut into more than 16,384.
    """
    require_few_tiles(data, tiles)
    grids = [
        tiles.windows(height, width)
        for height, width in zip(data.heights.tolist(), data.widths.tolist(), strict=True)
    ]
    counts = np.array([len(grid) for grid in grids], np.int64)
    images = np.arange(len(data)).repeat(counts)
    windows = np.concatenate(grids)
    rows, boxes, per_tile = _boxes(data, grids, tiles.inside)
    starts = np.concatenate([[0], np.cumsum(counts)])
    return replace(
        data,
        files=[data.files[image] for image in images.tolist()],
        image_ids=np.arange(len(images), dtype=np.int64),
        widths=windows[:, 2] - windows[:, 0],
        heights=windows[:, 3] - windows[:, 1],
        offsets=np.concatenate([[0], np.cumsum(per_tile)]).astype(np.int64),
        boxes_xywh=boxes,
        labels=data.labels[rows],
        areas=boxes[:, 2] * boxes[:, 3],
        crowd=data.crowd[rows],
        parts=tuple((int(starts[first]), root) for first, root in data.parts),
        tiling=Tiling(
            images=images,
            image_ids=data.image_ids[images],
            windows=windows,
            sizes=np.stack([data.heights, data.widths], axis=1)[images],
        ),
    )


def boxes_in_no_tile(data: Dataset, tiles: Tiles) -> NDArray[np.int64]:
    """Rows of the boxes that no tile has, since each shows less than ``tiles.inside`` of them."""
    sides = zip(data.heights.tolist(), data.widths.tolist(), strict=True)
    rows, _, _ = _boxes(
        data, [tiles.windows(height, width) for height, width in sides], tiles.inside
    )
    seen = np.zeros(len(data.labels), np.bool_)
    seen[rows] = True
    return np.flatnonzero(~seen)


def _boxes(
    data: Dataset, grids: list[NDArray[np.int32]], inside: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Row of each box that a tile has, the box in its pixels, and how many each tile has."""
    rows, boxes, counts = [], [], []
    for image, grid in enumerate(grids):
        own = data.boxes_of(image)
        xywh = data.boxes_xywh[own]
        low = np.maximum(xywh[None, :, :2], grid[:, None, :2])
        high = np.minimum(xywh[None, :, :2] + xywh[None, :, 2:], grid[:, None, 2:])
        sides = np.maximum(high - low, 0.0)
        # Of what lies in the image: a box over its edge is not cut by a tile.
        height, width = float(data.heights[image]), float(data.widths[image])
        end = np.minimum(xywh[:, :2] + xywh[:, 2:], (width, height))
        whole = np.prod(np.maximum(end - np.maximum(xywh[:, :2], 0.0), 0.0), axis=1)
        shares = np.prod(sides, axis=2)
        needed = np.where(data.crowd[own], 0.0, inside * whole)
        # A product of sides may round differently from the whole's.
        has = (shares > 0) & (shares >= needed * (1 - 1e-9))
        tile, box = np.nonzero(has)
        rows.append(own.start + box)
        corner = low[tile, box] - grid[tile, :2]
        boxes.append(np.concatenate([corner, sides[tile, box]], axis=1))
        counts.append(has.sum(axis=1))
    return (
        np.concatenate(rows).astype(np.int64),
        np.concatenate(boxes).reshape(-1, 4),
        np.concatenate(counts).astype(np.int64),
    )
