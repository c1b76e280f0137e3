"""Boxes on images: a colour for each class, what was found in full lines, what is there in thin."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_FONT = cv2.FONT_HERSHEY_SIMPLEX
#: The golden ratio: neighbouring classes get hues far apart, and no number of them runs out.
_GOLDEN = 0.618033988749895


@dataclass(frozen=True)
class Mark:
    """One box to draw.

    Attributes:
        box: xyxy, pixels of the image.
        label: of its class.
        text: written beside it; empty for none.
        thin: drawn with a thin line, as ground truth is.
    """

    box: tuple[float, float, float, float]
    label: int
    text: str = ""
    thin: bool = False


def colour_of(label: int) -> tuple[int, int, int]:
    """The RGB colour of a class: always the same, and bright."""
    red, green, blue = colorsys.hsv_to_rgb((0.05 + label * _GOLDEN) % 1.0, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(image: NDArray[np.uint8], marks: Sequence[Mark]) -> NDArray[np.uint8]:
    """A copy of a (h, w, 3) RGB image with marks on it; those given first lie on top."""
    canvas: NDArray[np.uint8] = image.copy()
    side = max(image.shape[:2])
    thick, scale = max(2, side // 300), max(0.35, side / 1400)
    for mark in reversed(marks):
        colour = colour_of(mark.label)
        corners = [round(value) for value in mark.box]
        start, end = (corners[0], corners[1]), (corners[2], corners[3])
        cv2.rectangle(canvas, start, end, colour, 1 if mark.thin else thick)
        if mark.text:
            _write(canvas, mark.text, start, colour, scale)
    return canvas


def _write(
    canvas: NDArray[np.uint8],
    text: str,
    corner: tuple[int, int],
    colour: tuple[int, int, int],
    scale: float,
) -> None:
    """Text on a patch of its colour, above the corner or, at the upper edge, below it."""
    (width, height), below = cv2.getTextSize(text, _FONT, scale, 1)
    left = int(np.clip(corner[0], 0, max(canvas.shape[1] - width, 0)))
    top = corner[1] - height - below if corner[1] >= height + below else corner[1]
    top = max(top, 0)
    cv2.rectangle(canvas, (left, top), (left + width, top + height + below), colour, cv2.FILLED)
    place = (left, top + height + below // 2)
    cv2.putText(canvas, text, place, _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)


def contact_sheet(
    images: Sequence[NDArray[np.uint8]], *, columns: int = 4, cell: int = 320
) -> NDArray[np.uint8]:
    """Images side by side, each shrunk or enlarged to fit a square of ``cell`` pixels."""
    rows = -(-len(images) // columns)
    sheet = np.full((rows * cell, min(columns, len(images)) * cell, 3), 255, np.uint8)
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        scale = cell / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else 1)
        top = number // columns * cell + (cell - size[1]) // 2
        left = number % columns * cell + (cell - size[0]) // 2
        sheet[top : top + size[1], left : left + size[0]] = small
    return sheet


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 90) -> bytes:
    """JPEG bytes of a (h, w, 3) RGB image."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes any 8-bit image"
    return bytes(data)
