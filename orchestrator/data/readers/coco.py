"""Reader of COCO ``instances`` files (https://cocodataset.org/#format-data).

Whatever would make training or evaluation silently wrong - a duplicate id, an annotation of an
unknown image, a NaN - is refused, all of it at once and with the JSON pointer of each place. What
is merely untidy - a box without area, a missing ``iscrowd`` - is put right and counted; odd values
beside the boxes are the business of :mod:`orchestrator.data.readers.coco_oddities`.
"""

from __future__ import annotations

import codecs
import json
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.files import read_text_bytes, reason
from orchestrator.data.findings import CONTROL, Finding, Problems, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.build import BoxColumns, ImageColumns, build_dataset
from orchestrator.data.readers.coco_oddities import (
    AREA_OF_CORNERS,
    IGNORED_ACTION,
    IGNORED_REGION,
    check_modes,
    mended_areas,
    root_finding,
    unused_root,
    upright,
)
from orchestrator.data.readers.coco_tables import Table, describe, positions_in
from orchestrator.data.readers.numbers import shown
from orchestrator.data.readers.paths import (
    USUAL,
    ReadRules,
    relative_names,
    require_file,
    require_folder,
    split_key,
)
from orchestrator.errors import DataError
from orchestrator.memory import no_garbage_collection


def read_coco(
    images_dir: str | Path, annotations_path: str | Path, rules: ReadRules = USUAL
) -> ReadResult:
    """Read one split of a COCO data set.

    Images keep the order of the file, boxes of an image theirs. Crowd annotations are kept and
    flagged; their run-length masks, like all segmentations, are not looked at. Boxes without area
    in the image are dropped; boxes that reach over its edge are kept as annotated and clipped only
    for training. A missing ``area`` is width times height, a missing ``iscrowd`` is 0.

    Args:
        images_dir: folder that ``file_name`` entries are relative to.
        annotations_path: the JSON file.
        rules: what the files are read by.

    Raises:
        DataError: the file or folder does not exist, is no valid JSON, or holds entries that
            cannot be understood; the first hundred are listed.
        SecurityError: a file name leads out of ``images_dir``.
    """
    path = require_file(
        Path(annotations_path), what="annotation file", key=split_key("annotations")
    )
    root = require_folder(Path(images_dir), what="image folder", key=split_key("images"))
    # Millions of new objects without a cycle: looking for cycles would double the time.
    with no_garbage_collection():
        problems = Problems(str(path))
        tree = _parse(path, problems)
        root_row = unused_root(tree)
        label_map = _categories(tree, root_row, problems)
        images = _images(tree, problems, root if rules.need_images else None)
        boxes, findings = _annotations(tree, images, label_map, problems)
        problems.raise_any()
    if root_row is not None:
        findings.append(root_finding(tree, root_row))
    assert label_map is not None, "broken categories are reported as problems"
    result = build_dataset(
        root,
        label_map,
        images,
        boxes,
        source=path,
        place=lambda row: f"/annotations/{row}/bbox",
        rules=rules,
    )
    # What does not fit into the images has been refused with more to say about it.
    for finding in findings:
        if finding.kind == AREA_OF_CORNERS:
            raise DataError(
                f"{path}: {finding.count} of {len(boxes.labels)} boxes have the area that they "
                f"have as x1, y1, x2, y2; the first is at {finding.examples[0]}\n"
                "write [x, y, width, height]: width is x2 - x1, height is y2 - y1"
            )
    return ReadResult(result.dataset, (*findings, *result.findings))


@dataclass(frozen=True)
class ImageList:
    """The images of a COCO file, whether or not it has annotations.

    Attributes:
        images: in its order.
        label_map: its classes; None where it names none.
    """

    images: ImageColumns
    label_map: LabelMap | None


def read_coco_images(annotations_path: str | Path) -> ImageList:
    """The images and classes of a COCO file, such as those of a test set without annotations.

    Raises:
        DataError: as :func:`read_coco`, but for what annotations hold.
    """
    path = require_file(Path(annotations_path), what="annotation file", key="--annotations")
    with no_garbage_collection():
        problems = Problems(str(path))
        tree = _parse(path, problems)
        named = bool(tree.get("categories"))
        label_map = _categories(tree, unused_root(tree), problems) if named else None
        images = _images(tree, problems)
        problems.raise_any()
    return ImageList(images, label_map)


def _parse(path: Path, problems: Problems) -> dict[str, Any]:
    try:
        data = read_text_bytes(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    if data.startswith(codecs.BOM_UTF8):
        raise DataError(f"{path}: begins with a byte order mark; save it as UTF-8 without one")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8 ({error.reason}); save it as UTF-8"
        ) from error
    del data
    doubled: list[tuple[dict[str, Any], str]] = []

    def whole(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # Of a key that stands twice a dict keeps the last value in silence.
        found = dict(pairs)
        if len(found) != len(pairs):
            doubled.append((found, _first_doubled(pairs)))
        return found

    try:
        tree = json.loads(text, object_pairs_hook=whole)
    except json.JSONDecodeError as error:
        ends = len(text.rstrip()) <= error.pos + 1 or "Unterminated" in error.msg
        hint = "; the file ends too early, copy it again" if ends else ""
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON ({error.msg}){hint}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(tree, dict):
        raise DataError(
            f"{path}: the top level is {describe(tree)}, expected an object with images, "
            "annotations and categories; is this a file of detection results?"
        )
    if doubled:
        _report_doubled(tree, doubled, problems)
    return tree


def _first_doubled(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return key


def _report_doubled(
    tree: dict[str, Any], doubled: list[tuple[dict[str, Any], str]], problems: Problems
) -> None:
    """Report objects with a key twice where values are taken from; elsewhere it does not matter."""
    key_of = {id(found): key for found, key in doubled}
    places = [("/", tree)]
    for name in ("images", "annotations", "categories"):
        rows = tree.get(name)
        if isinstance(rows, list):
            places += ((f"/{name}/{position}", row) for position, row in enumerate(rows))
    for pointer, found in places:
        if id(found) in key_of:
            problems.add(pointer, f"holds the key {shown(key_of[id(found)])} twice")


def _categories(tree: dict[str, Any], root_row: int | None, problems: Problems) -> LabelMap | None:
    """The label map, or None when the categories could not be understood.

    Args:
        tree: the file.
        root_row: of the category that is no class; None for none.
        problems: where to report.
    """
    table = Table.of(tree, "categories", problems).without(root_row)
    before = problems.count
    ids, _ = table.ints("id")
    names = table.strings("name")
    for row, name in enumerate(names):
        if CONTROL.search(name):
            problems.add(table.at(row, "name"), f"{name!r} holds a control character")
    if isinstance(tree.get("categories"), list) and not tree["categories"]:
        problems.add("/categories", "is empty, expected at least one class")
    if problems.count == before:
        table.report_duplicates("id", ids)
        seen: dict[str, int] = {}
        for row, name in enumerate(names):
            if name in seen:
                problems.add(
                    table.at(row, "name"),
                    f"{name!r} is already the name of {table.at(seen[name])}",
                )
            seen.setdefault(name, row)
    if problems.count != before or not names:
        return None
    return LabelMap.from_categories(
        [{"id": i, "name": name} for i, name in zip(ids.tolist(), names, strict=True)]
    )


def _images(tree: dict[str, Any], problems: Problems, root: Path | None = None) -> ImageColumns:
    """The images; absolute names below ``root``, where there is one, become relative to it."""
    table = Table.of(tree, "images", problems)
    ids, good = table.ints("id")
    if isinstance(tree.get("images"), list) and not tree["images"]:
        problems.add("/images", "is empty, expected at least one image")
    if good.all():
        table.report_duplicates("id", ids)
    files = table.strings("file_name")
    if root is not None:
        files = relative_names(root, files)
    _report_twins(table, files)
    return ImageColumns(
        files=tuple(files),
        ids=ids,
        widths=table.sizes("width"),
        heights=table.sizes("height"),
    )


def _report_twins(table: Table, files: list[str]) -> None:
    """Report every image that is listed twice: each of the two has only a part of the boxes."""
    seen: dict[str, int] = {}
    for row, file in enumerate(files):
        first = seen.setdefault(posixpath.normpath(file) if file else f"\0{row}", row)
        if first != row:
            table.problems.add(
                table.at(row, "file_name"),
                f"{shown(file)} is already the image of {table.at(first)}; make one image of both "
                "and give it the boxes of either",
            )


def _annotations(
    tree: dict[str, Any], images: ImageColumns, label_map: LabelMap | None, problems: Problems
) -> tuple[BoxColumns, list[Finding]]:
    """The boxes, which mean nothing once a problem was noted, and what was put right."""
    table = Table.of(tree, "annotations", problems)
    ids, good = table.ints("id")
    if good.all():
        table.report_duplicates("id", ids)
    xywh, _ = table.boxes("bbox")

    image_ids, good = table.ints("image_id")
    image, known = positions_in(image_ids, images.ids)
    table.report(
        good & ~known, "image_id", lambda row: f"is {image_ids[row]}, but no image has this id"
    )

    category_ids, good = table.ints("category_id")
    labels = np.zeros(len(table), dtype=np.int64)
    # With broken categories every annotation would be reported as well, to no one's help.
    if label_map is not None:
        labels, known = positions_in(category_ids, np.array(label_map.ids, dtype=np.int64))
        allowed = ", ".join(map(str, label_map.ids[:10])) + (", ..." if len(label_map) > 10 else "")
        table.report(
            good & ~known,
            "category_id",
            lambda row: f"is {category_ids[row]}, but the categories are {allowed}",
        )

    areas = table.areas("area")
    without_area = table.lacking("area")
    areas[without_area] = xywh[without_area, 2] * xywh[without_area, 3]
    crowd = table.flags("iscrowd")
    ignored = table.flags("ignore")
    check_modes(table)
    odd = [*upright(table, xywh, areas), *mended_areas(table, xywh, areas, crowd)]
    if ignored.any():
        places = [table.at(int(row)) for row in np.flatnonzero(ignored)]
        odd.append(Finding.at(IGNORED_REGION, IGNORED_ACTION, places))
    findings = [
        Finding(kind, int(count), action)
        for kind, count, action in (
            ("missing_area", without_area.sum(), "set to width * height"),
            ("missing_iscrowd", table.lacking("iscrowd").sum(), "set to 0"),
        )
        if count
    ]
    return BoxColumns(image, xywh, labels, areas, crowd | ignored), [*findings, *odd]
