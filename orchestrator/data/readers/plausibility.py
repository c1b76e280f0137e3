"""Boxes that can be read, but hardly are what was meant: other units, corners, boxes twice.

What leaves no doubt is refused, since training on it would end well and mean nothing. Every limit
here is one that boxes in pixels do not meet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.findings import MAX_EXAMPLES, Finding
from orchestrator.errors import DataError

#: Kind of the finding for boxes that may be per cent of the image, or a logo in its corner.
BOXES_IN_CORNER = "boxes_in_corner"
#: Fewer boxes may look like anything.
_ENOUGH = 10
#: Boxes within the first pixel of their images; a large set has one or two by mistake.
_FEW = 3
_SHARE = 0.01
#: Sides from which on nobody annotates the first hundred pixels alone.
_LARGE_SIDE = 200
#: Pixels that a box in corners may reach over the edge.
_EDGE = 2.0
#: Boxes that would reach over the edge if corners were widths and heights.
_OVER_EDGE = 0.25
#: Share of the boxes from which on equal ones are the mistake of an export. COCO has a few.
_DOUBLED_SHARE = 0.01
#: Share of the boxes from which on those that would be dropped are no slips of the hand.
_LOST_SHARE = 0.1
#: Boxes from which on the range of whole numbers says what they are parts of.
_MANY = 30
#: Places behind the point that tell two boxes apart.
_DECIMALS = 3


@dataclass(frozen=True)
class Examined:
    """What :func:`examine_boxes` found.

    Attributes:
        dropped: (m,) bool, boxes that are there already.
        findings: about them.
    """

    dropped: NDArray[np.bool_]
    findings: list[Finding] = field(default_factory=list)


def refuse_other_units(
    xywh: NDArray[np.float64],
    sizes: NDArray[np.int32],
    *,
    source: Path,
    place: Callable[[int], str],
    outside: bool = True,
) -> None:
    """Refuse boxes that are no ``x, y, width, height`` in pixels.

    Args:
        xywh: (m, 4) boxes.
        sizes: (m, 2) width and height of each one's image.
        source: file of them, for messages.
        place: where a box, given by its row, stands.
        outside: whether to refuse many that lie outside of their images.

    Raises:
        DataError: they are something else, and in which way.
    """
    meant = _meant_otherwise(xywh, sizes, outside=outside)
    if meant is None:
        return
    rows, what, instead = meant
    row = int(rows[0])
    x, y, w, h = xywh[row].tolist()
    width, height = sizes[row].tolist()
    raise DataError(
        f"{source}: {len(rows)} of {len(xywh)} boxes {what}; the first, at {place(row)}, is "
        f"x {x:g}, y {y:g}, width {w:g}, height {h:g} in an image of {width}x{height}\n"
        f"{instead}"
    )


def examine_boxes(
    xywh: NDArray[np.float64],
    image: NDArray[np.int64],
    labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    sizes: NDArray[np.int32],
    *,
    source: Path,
    place: Callable[[int], str],
) -> Examined:
    """Look at all boxes of a split together.

    Args:
        xywh: (m, 4) boxes, taken to be pixels.
        image, labels, crowd: (m,) of each.
        sizes: (m, 2) width and height of each one's image.
        source: annotation file, for messages.
        place: where a box, given by its row, is annotated.

    Raises:
        DataError: they are no boxes ``x, y, width, height`` in pixels.
    """
    refuse_other_units(xywh, sizes, source=source, place=place)
    examined = _doubled(xywh, image, labels, crowd, place)
    first = _in_first_pixels(xywh, sizes)
    if first is not None:
        action = (
            f"lie within the first {first.named} pixels of larger images and close together there, "
            f"as a logo or a clock does; if they are {first.unit} of the image, write pixels"
        )
        places = tuple(place(row) for row in range(min(len(xywh), MAX_EXAMPLES)))
        examined.findings.append(Finding(BOXES_IN_CORNER, len(xywh), action, places))
    return examined


def refuse_other_fractions(
    xywh: NDArray[np.float64],
    sizes: NDArray[np.int32],
    source: Path,
    place: Callable[[int], str],
) -> None:
    """Refuse YOLO's lines that hold no centres: corners, or what COCO's boxes begin with.

    Args:
        xywh: (m, 4) boxes in pixels, as they are if each line is ``x_centre y_centre width
            height``.
        sizes: (m, 2) width and height of each one's image.
        source: annotations, for messages.
        place: where a box, given by its row, is annotated.

    Raises:
        DataError: many reach over the edges, and none would if it were meant otherwise.
    """
    if len(xywh) < _ENOUGH:
        return
    x, y, w, h = xywh.T
    width, height = sizes.T
    # The four numbers of a line, times the sides of the image.
    first, second = x + w / 2, y + h / 2
    over = (x < -_EDGE) | (y < -_EDGE) | (x + w > width + _EDGE) | (y + h > height + _EDGE)
    if over.sum() < _FEW:
        return
    corners = (w > first) & (h > second) & (w <= width + _EDGE) & (h <= height + _EDGE)
    beginnings = (first + w <= width + _EDGE) & (second + h <= height + _EDGE)
    forms = [
        name
        for name, fits in (
            ("x1 y1 x2 y2", corners.all() and over.mean() >= _OVER_EDGE),
            ("left top width height", beginnings.all() and over.mean() >= _LOST_SHARE),
        )
        if fits
    ]
    if forms:
        raise DataError(
            f"{source}: {int(over.sum())} of {len(xywh)} boxes reach over the edge of their "
            f"images, and all would fit as {' or '.join(forms)}; the first is at "
            f"{place(int(over.argmax()))}\n"
            "write class x_centre y_centre width height, in fractions of the image"
        )


def _meant_otherwise(
    xywh: NDArray[np.float64], sizes: NDArray[np.int32], *, outside: bool
) -> tuple[NDArray[np.int64], str, str] | None:
    """Rows of the boxes that are not in pixels, in which way, and what to do."""
    count = len(xywh)
    if not count:
        return None
    x, y, w, h = xywh.T
    right, bottom = x + w, y + h
    low = np.minimum(x, y)
    broken = (xywh != np.rint(xywh)).any(axis=1)
    # Of a VOC box, which counts from 1, the reader has taken 1 from the left and the top.
    first_pixel = broken & (low >= -1) & (np.maximum(right, bottom) <= 1.0001)
    first_pixel &= (w > 0) & (h > 0) & (sizes.min(axis=1) >= 16)
    if (first_pixel.all() and count >= _FEW) or first_pixel.sum() > max(_FEW, _SHARE * count):
        return (
            np.flatnonzero(first_pixel),
            "lie within the first pixel of their images, as fractions of the image do",
            "multiply x and width by the width of the image, y and height by its height; boxes are "
            "in pixels (only YOLO's are fractions: data.format=yolo)",
        )
    if count < _ENOUGH:
        return None
    first = _in_first_pixels(xywh, sizes)
    if first is not None and _all_over(xywh, first.whole):
        return (
            np.arange(count),
            f"lie within the first {first.named} pixels of larger images, as {first.unit} of the "
            "image do",
            f"divide by {first.whole} and multiply x and width by the width of the image, y and "
            "height by its height; boxes are in pixels",
        )
    width, height = sizes.T
    across, along = right > width + _EDGE, bottom > height + _EDGE
    over = across | along
    corners = (w > x) & (h > y) & (w <= width + _EDGE) & (h <= height + _EDGE) & (low >= -_EDGE)
    if corners.all() and over.mean() >= _OVER_EDGE:
        return (
            np.flatnonzero(over),
            "reach over the edge of their images, and all would fit as x1, y1, x2, y2",
            "write [x, y, width, height]: width is x2 - x1, height is y2 - y1",
        )
    centres = (x >= w / 2 - _EDGE) & (y >= h / 2 - _EDGE) & (w > 0) & (h > 0)
    centres &= (x + w / 2 <= width + _EDGE) & (y + h / 2 <= height + _EDGE)
    # Objects that leave the image, annotated whole, may do so on one side alone.
    if centres.all() and over.mean() >= _LOST_SHARE and across.any() and along.any():
        return (
            np.flatnonzero(over),
            "reach over the edge of their images, and all would fit with x and y as their centres",
            "write [x, y, width, height] with the left and upper edge: x - width / 2, "
            "y - height / 2",
        )
    negative = (w < 0) | (h < 0)
    if negative.mean() >= _LOST_SHARE:
        return (
            np.flatnonzero(negative),
            "have a negative width or height",
            "see whether their corners stand in another order; a box begins at its upper left",
        )
    away = (right <= 0) | (bottom <= 0) | (x >= width) | (y >= height)
    if outside and away.mean() >= _LOST_SHARE:
        return np.flatnonzero(away), "lie outside of their images", _likely(xywh, sizes)
    return None


class _Part(NamedTuple):
    """Pixels that boxes in a unit other than pixels lie in: how many, in words, and the unit."""

    whole: int
    named: str
    unit: str


_PARTS = (_Part(100, "hundred", "per cent"), _Part(1000, "thousand", "per mille"))


def _in_first_pixels(xywh: NDArray[np.float64], sizes: NDArray[np.int32]) -> _Part | None:
    """What boxes may be parts of that all lie in the first pixels of large images."""
    if len(xywh) < _ENOUGH:
        return None
    ends = (xywh[:, :2] + xywh[:, 2:]).max(axis=0)
    for part in _PARTS:
        inside = xywh[:, :2].min() >= -1 and ends.max() <= part.whole * 1.0001
        if not inside or sizes.min() < _LARGE_SIDE * part.whole / 100:
            continue
        # Whole numbers tell less: of them there have to be more, over all of that range.
        broken = (xywh != np.rint(xywh)).any(axis=1).mean() > 0.5 and ends.max() > part.whole / 2
        if broken or (len(xywh) >= _MANY and ends.min() > 0.9 * part.whole):
            return part
    return None


def _all_over(xywh: NDArray[np.float64], whole: int) -> bool:
    """Whether boxes are spread over the first ``whole`` pixels as objects are over images.

    A logo and a clock in the corner of every picture are not.
    """
    centres = xywh[:, :2] + xywh[:, 2:] / 2
    low, high = np.percentile(centres, (5, 95), axis=0)
    thirds = np.unique(np.floor(centres * 3 / whole), axis=0)
    return bool(len(thirds) >= 3 and (high - low).max() > whole / 2)


def _likely(xywh: NDArray[np.float64], sizes: NDArray[np.int32]) -> str:
    """What boxes that lie outside of their images may be, and what to write instead."""
    x, y, w, h = xywh.T
    width, height = sizes.T
    right, bottom = x + w, y + h
    wanted = "write [x, y, width, height] in pixels of the image"
    if (right <= height + _EDGE).all() and (bottom <= width + _EDGE).all():
        return f"all would fit with x and y exchanged; {wanted}"
    fitting = float(np.minimum(width / right, height / bottom).min())
    if min(right.max(), bottom.max()) > 900 and max(right.max(), bottom.max()) <= 1000.1:
        return f"they may be per mille of the image; {wanted}"
    if fitting > 0:
        return (
            f"all would fit at {fitting:.2g} times their size: they may be pixels of images before "
            f"these were made smaller; {wanted}"
        )
    return wanted


def _doubled(
    xywh: NDArray[np.float64],
    image: NDArray[np.int64],
    labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    place: Callable[[int], str],
) -> Examined:
    """Boxes of one class that are in their image already."""
    again = np.zeros(len(xywh), np.bool_)
    columns = [image, labels, crowd.astype(np.int64), *(np.round(xywh, _DECIMALS) + 0.0).T]
    mixed = np.zeros(len(xywh), np.uint64)
    for column in columns:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + np.ascontiguousarray(column).view(np.uint64)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    # Equal sums are few; of these, all columns decide.
    same = np.flatnonzero(mixed[order][1:] == mixed[order][:-1]) + 1
    pairs = order[same], order[same - 1]
    equal = (np.round(xywh[pairs[0], 2:], _DECIMALS) > 0).all(axis=1)
    for column in columns:
        equal &= column[pairs[0]] == column[pairs[1]]
    again[pairs[0][equal]] = True
    count = int(again.sum())
    if not count:
        return Examined(again)
    dropped = count >= _DOUBLED_SHARE * len(xywh)
    action = (
        "dropped: the same box of the same class stands in its image already; exports of several "
        "annotators, or of an annotation and its prediction, write both"
        if dropped
        else "kept, as COCO's own scorer keeps them: the same box stands in its image already"
    )
    places = [place(int(row)) for row in np.flatnonzero(again)[:MAX_EXAMPLES]]
    found = Finding("equal_box", count, action, tuple(places))
    return Examined(again if dropped else np.zeros_like(again), [found])
