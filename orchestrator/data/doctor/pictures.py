"""Pictures of a data set: images with their boxes on one sheet, and where boxes lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.batch import Batch
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.pages import drawing
from orchestrator.pages.drawing import Image, Mark, draw, shrunk

#: Pixels of a heat map on each side.
HEAT_CELLS = 64
_TILE = 192
_GAP = 4
_COLUMNS = 6


def tile(image: Image, boxes: NDArray[np.floating], labels: NDArray[np.int64]) -> Image:
    """An image of at most 192 pixels a side, and its xyxy boxes."""
    marks = [
        Mark((box[0], box[1], box[2], box[3]), label, kind="annotation")
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True)
    ]
    return draw(*shrunk(image, marks, _TILE))


def sheet(tiles: Sequence[Image]) -> Image:
    """Tiles side by side, six in a row."""
    return drawing.contact_sheet(tiles, columns=_COLUMNS, cell=_TILE, enlarge=False, gap=_GAP)


def tiles(data: Dataset, indices: Iterable[int]) -> Iterator[tuple[int, Image]]:
    """Index and tile of the images at ``indices`` that can be read, with all their boxes."""
    for index in indices:
        try:
            image = image_pixels(data, index, declared=False)
        except BadImageError:
            # It has a diagnosis of its own.
            continue
        rows = data.boxes_of(index)
        xywh = data.boxes_xywh[rows]
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        yield index, tile(image, xyxy, data.labels[rows])


def batch_sheet(batches: Iterable[Batch]) -> Image:
    """The images of batches as the network gets them."""
    return sheet(
        [
            tile(image, boxes[valid], labels[valid])
            for batch in batches
            for image, boxes, labels, valid in zip(
                batch.images, batch.boxes, batch.labels, batch.valid, strict=True
            )
        ]
    )


def heat(data: Dataset) -> NDArray[np.float64]:
    """(64, 64) in [0, 1]: how much of the boxes lies at each part of an image; 1 at the most."""
    counts = np.zeros((HEAT_CELLS + 1, HEAT_CELLS + 1))
    image = np.arange(len(data)).repeat(np.diff(data.offsets))
    sides = np.stack([data.widths, data.heights], axis=1)[image]
    cells = HEAT_CELLS / sides
    starts = np.floor(data.boxes_xywh[:, :2] * cells)
    ends = np.ceil((data.boxes_xywh[:, :2] + data.boxes_xywh[:, 2:]) * cells)
    low = np.clip(starts, 0, HEAT_CELLS - 1).astype(np.int64)
    high = np.clip(ends, low + 1, HEAT_CELLS).astype(np.int64)
    # Four corners of a box in the second difference make the whole box in the sum.
    for xs, ys, sign in (
        (low[:, 0], low[:, 1], 1),
        (high[:, 0], low[:, 1], -1),
        (low[:, 0], high[:, 1], -1),
        (high[:, 0], high[:, 1], 1),
    ):
        np.add.at(counts, (ys, xs), sign)
    summed = counts.cumsum(axis=0).cumsum(axis=1)[:HEAT_CELLS, :HEAT_CELLS]
    return summed / max(1.0, float(summed.max()))


def heat_picture(values: NDArray[np.float64], side: int = 256) -> Image:
    """(64, 64) values in [0, 1] as a coloured square."""
    grey = np.round(values * 255).astype(np.uint8)
    coloured = cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO)
    large = cv2.resize(coloured, (side, side), interpolation=cv2.INTER_NEAREST)
    return cv2.cvtColor(large, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
