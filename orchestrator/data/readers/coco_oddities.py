"""Values beside the boxes of a COCO file that tools write in ways of their own.

- CVAT and others keep a turned box as the rectangle before it was turned, with the angle among its
  ``attributes``.
- ``area`` decides in evaluation whether a box is small, medium or large. Some tools write 0, some
  that of another box or another size of the image.
- Roboflow puts a category above the others that no annotation belongs to.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.findings import Finding
from orchestrator.data.readers.coco_tables import Table

#: Finding about boxes marked to be ignored.
IGNORED_REGION, IGNORED_ACTION = "ignored_region", "neither learnt nor scored, like crowds"
#: Kind of the finding for boxes that are turned.
ROTATED_BOX = "rotated_box"
#: What is done about it.
ROTATED_ACTION = "replaced by the upright box around the turned one"

#: Kind of the finding for areas that boxes have as corners, not as they are given.
AREA_OF_CORNERS = "area_of_corners"

#: A segment may be larger than its box by what rounding makes of it.
_ROUNDING, _ROUNDING_PIXELS = 1.05, 4.0
#: Fewer areas may stand in any relation to their boxes.
_ENOUGH = 10


def hull(
    xywh: tuple[float, float, float, float], degrees: float
) -> tuple[float, float, float, float]:
    """The upright box around one that is turned about its centre."""
    x, y, width, height = xywh
    cosine = abs(math.cos(math.radians(degrees)))
    sine = abs(math.sin(math.radians(degrees)))
    wide, high = width * cosine + height * sine, width * sine + height * cosine
    return x + (width - wide) / 2, y + (height - high) / 2, wide, high


def upright(table: Table, xywh: NDArray[np.float64], areas: NDArray[np.float64]) -> list[Finding]:
    """Replace turned boxes by their hulls, in place; an area that was the box's stays as it is."""
    turned = []
    for row, entry in enumerate(table.rows):
        degrees = _angle(table, row, entry)
        if degrees is None or xywh[row, 2] <= 0 or xywh[row, 3] <= 0:
            continue
        if not math.isfinite(degrees):
            table.problems.add(
                table.at(row, "attributes/rotation"), "is not finite, expected degrees"
            )
        elif degrees % 180:
            xywh[row] = hull(tuple(xywh[row].tolist()), degrees)
            turned.append(table.at(row))
    return [Finding.at(ROTATED_BOX, ROTATED_ACTION, turned)] if turned else []


def _angle(table: Table, row: int, entry: dict[str, Any]) -> float | None:
    """Degrees that the box of an annotation is turned by; None for none."""
    for owner in (entry.get("attributes"), entry):
        if not isinstance(owner, dict):
            continue
        for key in ("rotation", "angle"):
            value = _number(owner.get(key))
            if value:
                return value
        if _number(owner.get("theta")):
            table.problems.add(
                table.at(row, "theta"),
                "turns the box by an angle in a unit that nobody knows; write degrees, as "
                "attributes.rotation",
            )
    return None


def _number(value: object) -> float | None:
    """A number, also one that was written as text; infinity for what is far from any angle."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if abs(value) < 1e9 else math.inf


def check_modes(table: Table) -> None:
    """Report boxes that say of themselves that they are no ``[x, y, width, height]``.

    Detectron2 writes ``bbox_mode`` beside each box: 1, or ``XYWH_ABS``, is what COCO has.
    """
    for row, entry in enumerate(table.rows):
        mode = entry.get("bbox_mode", 1)
        if mode not in (1, "XYWH_ABS", "BoxMode.XYWH_ABS") or isinstance(mode, bool):
            table.problems.add(
                table.at(row, "bbox_mode"),
                f"is {mode!r}, expected 1 (XYWH_ABS): boxes are [x, y, width, height] in pixels",
            )


def mended_areas(
    table: Table,
    xywh: NDArray[np.float64],
    areas: NDArray[np.float64],
    crowd: NDArray[np.bool_],
) -> list[Finding]:
    """Replace areas that cannot be right by width times height, in place."""
    boxes = xywh[:, 2] * xywh[:, 3]
    sound = (xywh[:, 2] > 0) & (xywh[:, 3] > 0)
    action = "set to width * height, as the size of a box is what evaluation sorts by"
    findings = []
    corners = (xywh[:, 2] - xywh[:, 0]) * (xywh[:, 3] - xywh[:, 1])
    of_corners = np.isclose(areas, corners, rtol=1e-3) & ~np.isclose(areas, boxes, rtol=1e-3)
    if len(areas) >= _ENOUGH and of_corners.mean() > 0.9:
        found = np.flatnonzero(of_corners).tolist()
        findings.append(
            Finding.at(AREA_OF_CORNERS, "refused", [table.at(row, "bbox") for row in found])
        )

    def mend(kind: str, rows: NDArray[np.bool_], why: str) -> None:
        if rows.any():
            places = [table.at(int(row), "area") for row in np.flatnonzero(rows)[:5]]
            areas[rows] = boxes[rows]
            findings.append(Finding(kind, int(rows.sum()), f"{action}; {why}", tuple(places)))

    outlined = sum(bool(row.get("segmentation")) for row in table.rows) * 2 > len(table)
    mend("zero_area", sound & (areas == 0), "it is 0 for a box that has one")
    above = sound & (areas > boxes * _ROUNDING + _ROUNDING_PIXELS)
    real = sound & ~crowd
    if real.sum() >= _ENOUGH:
        ratio = np.divide(areas, boxes, out=np.ones(len(areas)), where=sound)[real]
        low, middle, high = np.percentile(ratio, (10, 50, 90))
        # Segments fill their boxes to very different parts; one factor for all is another scale.
        if not outlined and abs(middle - 1) > 0.05 and (high - low) <= 0.01 * middle:
            why = f"all are about {middle:.3g} times the box, so they are of another scale"
            mend("area_of_another_scale", real & (areas != boxes), why)
        elif high < 0.02:
            why = "they are below 2 % of the box, so they are of another scale"
            mend("area_of_another_scale", real, why)
        above &= areas > boxes * _ROUNDING + _ROUNDING_PIXELS
    mend("area_above_box", above, "nothing inside a box is larger than the box")
    return findings


def unused_root(tree: dict[str, Any]) -> int | None:
    """Row of the category above all others that nothing is annotated as; None for none."""
    rows = tree.get("categories")
    annotations = tree.get("annotations")
    if not isinstance(rows, list) or not isinstance(annotations, list) or len(rows) < 2:
        return None
    if not all(isinstance(row, dict) for row in [*rows, *annotations]):
        return None
    for position, row in enumerate(rows):
        others = rows[:position] + rows[position + 1 :]
        if row.get("supercategory") == "none" and all(
            one.get("supercategory") == row.get("name") for one in others
        ):
            number = row.get("id")
            used = any(one.get("category_id") == number for one in annotations)
            clear = sum(one.get("id") == number for one in rows) == 1
            return None if used or not clear else position
    return None


def root_finding(tree: dict[str, Any], row: int) -> Finding:
    """That a category was left out."""
    name = str(tree["categories"][row].get("name"))
    action = "left out: it stands above the other categories, and nothing is annotated as it"
    return Finding("root_category", 1, action, (f"/categories/{row}: {name}",))
