"""Pictures of a data set: images with their boxes on one sheet, and where boxes lie."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.batch import Batch
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels

Image = NDArray[np.uint8]

#: Pixels of a heat map on each side.
HEAT_CELLS = 64
_TILE = 192
_GAP = 4
_COLUMNS = 6


def colour_of(label: int, classes: int) -> tuple[int, int, int]:
    """RGB of a class; neighbours are far apart."""
    hue = (label * 0.618034) % 1.0 if classes > 1 else 0.33
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def tile(
    image: Image, boxes: NDArray[np.floating], labels: NDArray[np.int64], classes: int
) -> Image:
    """An image and its xyxy boxes, fitted into a square of 192 pixels."""
    height, width = image.shape[:2]
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = np.full((_TILE, _TILE, 3), 32, dtype=np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for box, label in zip(boxes * scale, labels.tolist(), strict=True):
        left, top, right, bottom = (round(float(edge)) for edge in box)
        cv2.rectangle(canvas, (left, top), (right, bottom), colour_of(label, classes), 1)
    return canvas


def sheet(tiles: Sequence[Image]) -> Image:
    """Tiles side by side, six in a row."""
    rows = -(-len(tiles) // _COLUMNS)
    step = _TILE + _GAP
    canvas = np.full((rows * step, min(len(tiles), _COLUMNS) * step, 3), 255, dtype=np.uint8)
    for position, one in enumerate(tiles):
        row, column = divmod(position, _COLUMNS)
        canvas[row * step :, column * step :][:_TILE, :_TILE] = one
    return canvas


def contact_sheet(data: Dataset, indices: Iterable[int]) -> Image | None:
    """The images at ``indices`` with all their boxes; None when none of them can be read."""
    tiles = []
    for index in indices:
        try:
            image = image_pixels(data, index, declared=False)
        except BadImageError:
            # It has a diagnosis of its own.
            continue
        rows = data.boxes_of(index)
        xywh = data.boxes_xywh[rows]
        xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        tiles.append(tile(image, xyxy, data.labels[rows], len(data.label_map)))
    return sheet(tiles) if tiles else None


def batch_sheet(batches: Iterable[Batch], classes: int) -> Image:
    """The images of batches as the network gets them."""
    return sheet(
        [
            tile(image, boxes[valid], labels[valid], classes)
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


def jpeg(image: Image, quality: int = 85) -> bytes:
    """An RGB image as the bytes of a JPEG file."""
    made, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    assert made, "an image in memory can be encoded"
    return data.tobytes()
