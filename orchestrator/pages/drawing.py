"""Boxes on images: a colour for each class, and a line for each thing that a box can be.

========================  =======================================================================
detection                 full line, class and score
true positive             the same: a detection that matches an annotation
false positive            dashed line, ``FP`` before class and score
annotation                thin full line
missed (false negative)   thin full line, ``missed`` and the class, below the box
========================  =======================================================================

Line and word say it, so that nothing depends on seeing colours.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Image: TypeAlias = NDArray[np.uint8]
Colour: TypeAlias = tuple[int, int, int]
Kind: TypeAlias = Literal["detection", "false positive", "annotation", "missed"]

#: What people are shown where nothing else is asked for; scoring needs everything that is kept.
DISPLAY_SCORE: Final = 0.25
DISPLAY_LIMIT: Final = 100

_FONT = cv2.FONT_HERSHEY_SIMPLEX
#: The golden ratio: neighbouring classes get hues far apart, and no number of them runs out.
_GOLDEN = 0.618033988749895
_BLACK: Final[Colour] = (0, 0, 0)
_WHITE: Final[Colour] = (255, 255, 255)
#: Lengths of a stroke of a dashed line and of the gap after it, in widths of the line.
_DASH: Final = (6, 4)
_PREFIXES: Final[dict[Kind, str]] = {"false positive": "FP ", "missed": "missed "}


@dataclass(frozen=True)
class Mark:
    """One box to draw.

    Attributes:
        box: xyxy, pixels of the image.
        label: of its class.
        text: written beside it, after the word of its kind; empty for no writing at all.
        kind: what the box is, which decides line and word.
    """

    box: tuple[float, float, float, float]
    label: int
    text: str = ""
    kind: Kind = "detection"


def colour_of(label: int) -> Colour:
    """The RGB colour of a class: always the same, and bright."""
    red, green, blue = colorsys.hsv_to_rgb((0.05 + label * _GOLDEN) % 1.0, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever contrasts more with a background (WCAG 2.2, contrast ratio)."""
    return _BLACK if contrast(background, _BLACK) >= contrast(background, _WHITE) else _WHITE


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of two RGB colours, from 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ink(colour: Colour) -> Colour:
    """A colour dark enough for lines on white paper: a contrast of 3, in the same hue."""
    share = 1.0
    while contrast(dark := _scaled(colour, share), _WHITE) < 3.0:
        share -= 0.02
    return dark


def _scaled(colour: Colour, share: float) -> Colour:
    red, green, blue = (round(value * share) for value in colour)
    return red, green, blue


def _luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    shares = [value / 255 for value in colour]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def draw(image: Image, marks: Sequence[Mark]) -> Image:
    """A copy of a (h, w, 3) RGB image with marks on it; those given first lie on top."""
    canvas: Image = image.copy()
    side = max(image.shape[:2])
    thick, scale = max(2, side // 300), max(0.35, side / 1400)
    for mark in reversed(marks):
        colour = colour_of(mark.label)
        left, top, right, bottom = (round(value) for value in mark.box)
        if mark.kind == "false positive":
            for start, end in _strokes((left, top, right, bottom), thick):
                cv2.line(canvas, start, end, colour, thick)
        else:
            width = thick if mark.kind == "detection" else max(1, thick // 2)
            cv2.rectangle(canvas, (left, top), (right, bottom), colour, width)
    # Lines first, for a label that is crossed out cannot be read.
    for mark in reversed(marks):
        if mark.text:
            text = f"{_PREFIXES.get(mark.kind, '')}{mark.text}"
            left, top, _, bottom = (round(value) for value in mark.box)
            # What was missed is named below its box, where no detection has its label.
            at = (left, bottom) if mark.kind == "missed" else (left, top)
            colour = colour_of(mark.label)
            _write(canvas, text, at, colour, scale, below=mark.kind == "missed")
    return canvas


def _strokes(
    box: tuple[int, int, int, int], width: int
) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    """Starts and ends of the strokes that go round a box, from corner to corner."""
    left, top, right, bottom = box
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    stroke, gap = (max(1, part * width) for part in _DASH)
    for (x, y), (to_x, to_y) in pairwise(corners):
        length = max(abs(to_x - x), abs(to_y - y), 1)
        for begin in range(0, length, stroke + gap):
            ends = (begin / length, min(begin + stroke, length) / length)
            first, last = (
                (round(x + (to_x - x) * share), round(y + (to_y - y) * share)) for share in ends
            )
            yield first, last


def _write(
    canvas: Image,
    text: str,
    corner: tuple[int, int],
    colour: Colour,
    scale: float,
    *,
    below: bool,
) -> None:
    """Text on a patch of its colour: above or below a corner, and always inside the image."""
    (width, height), rest = cv2.getTextSize(text, _FONT, scale, 1)
    whole = height + rest
    left = int(np.clip(corner[0], 0, max(canvas.shape[1] - width, 0)))
    top = corner[1] if below else corner[1] - whole
    if not below and top < 0:
        top = corner[1]
    top = int(np.clip(top, 0, max(canvas.shape[0] - whole, 0)))
    cv2.rectangle(canvas, (left, top), (left + width, top + whole), colour, cv2.FILLED)
    place = (left, top + height + rest // 2)
    cv2.putText(canvas, text, place, _FONT, scale, text_colour(colour), 1, cv2.LINE_AA)


def shrunk(image: Image, marks: Sequence[Mark], side: int) -> tuple[Image, list[Mark]]:
    """An image whose longer side is ``side`` at most, and its marks moved along."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image, list(marks)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    moved = [
        Mark(
            (one.box[0] * scale, one.box[1] * scale, one.box[2] * scale, one.box[3] * scale),
            one.label,
            one.text,
            one.kind,
        )
        for one in marks
    ]
    return small, moved


def contact_sheet(
    images: Sequence[Image],
    *,
    columns: int = 4,
    cell: int = 320,
    enlarge: bool = True,
    gap: int = 0,
) -> Image:
    """Images side by side, each in the middle of a white square.

    Args:
        images: (h, w, 3) RGB each; at least one.
        columns: in a row.
        cell: pixels of a square's side, which the longer side of an image fills.
        enlarge: whether smaller images are enlarged to do so.
        gap: white pixels after each square, to the right and below.
    """
    rows = -(-len(images) // columns)
    step = cell + gap
    sheet = np.full((rows * step, min(columns, len(images)) * step, 3), 255, np.uint8)
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        scale = cell / max(height, width)
        small = image
        if scale < 1 or (scale > 1 and enlarge):
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            small = cv2.resize(image, size, interpolation=method).astype(np.uint8, copy=False)
        height, width = small.shape[:2]
        top = number // columns * step + (cell - height) // 2
        left = number % columns * step + (cell - width) // 2
        sheet[top : top + height, left : left + width] = small
    return sheet


def encode_jpeg(image: Image, *, quality: int = 90, comment: bytes = b"") -> bytes:
    """JPEG bytes of a (h, w, 3) RGB image, with a comment near their beginning if there is one."""
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes any 8-bit image"
    encoded = bytes(data)
    if not comment:
        return encoded
    # Behind JFIF's own segment, which has to be the first.
    at = 4 + int.from_bytes(encoded[4:6], "big")
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
    return encoded[:at] + segment + encoded[at:]
