"""From the columns a reader has collected to a :class:`Dataset`: what all formats share.

Whatever the format, boxes without area in their image are dropped, boxes over its edge are kept as
annotated, and both are counted with their places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.findings import MAX_EXAMPLES, Finding, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.lookalikes import Lookalikes
from orchestrator.data.readers.paths import USUAL, ReadRules, check_files
from orchestrator.data.readers.plausibility import examine_boxes
from orchestrator.errors import DataError

#: Kind of the finding for images that annotations name and the folder lacks.
MISSING_IMAGE = "missing_image"


@dataclass(frozen=True)
class ImageColumns:
    """The images of a split, in order; see :class:`Dataset`. Without a known size, 0 by 0."""

    files: tuple[str, ...]
    ids: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]

    def sizes(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """(len(rows), 2) widths and heights."""
        return np.stack([self.widths[rows], self.heights[rows]], axis=1)

    def take(self, rows: NDArray[np.int64]) -> ImageColumns:
        """The images at ``rows``."""
        return ImageColumns(
            tuple(self.files[row] for row in rows.tolist()),
            self.ids[rows],
            self.widths[rows],
            self.heights[rows],
        )


@dataclass(frozen=True)
class BoxColumns:
    """Boxes in any order; ``image`` is each one's position among the images."""

    image: NDArray[np.int64]
    xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> BoxColumns:
        """The boxes at ``rows``."""
        return BoxColumns(
            self.image[rows], self.xywh[rows], self.labels[rows], self.areas[rows], self.crowd[rows]
        )


def build_dataset(
    root: Path,
    label_map: LabelMap,
    images: ImageColumns,
    boxes: BoxColumns,
    *,
    source: Path,
    place: Callable[[int], str],
    rules: ReadRules = USUAL,
    stems: Sequence[str] | None = None,
) -> ReadResult:
    """Sanitise boxes, sort them by image and look for the image files.

    Images of unknown size are left out, and their boxes with them.

    Args:
        root: absolute real path of the image folder.
        label_map: classes that ``boxes.labels`` speak of.
        images: of the split.
        boxes: as annotated.
        source: annotation file, for messages.
        place: where a box, given by its row, is annotated.
        rules: what the files are read by.
        stems: of the annotation file of each image, where each has one.

    Raises:
        DataError: not one of the image files exists, not one size is known, or the boxes cannot be
            meant as they stand; see :mod:`orchestrator.data.readers.plausibility`.
        SecurityError: a file name leads out of ``root``.
    """
    known = images.widths > 0
    if not known.any():
        raise DataError(
            f"none of the {len(known)} images of {source} can be read; the first is "
            f"{root / images.files[0]}\nopen it with another program to see what it is"
        )
    on_known = np.flatnonzero(known[boxes.image])
    boxes = boxes.take(on_known)

    def place_of(row: int) -> str:
        return place(int(on_known[row]))

    sizes = images.sizes(boxes.image)
    examined = examine_boxes(
        boxes.xywh,
        boxes.image,
        boxes.labels,
        boxes.crowd,
        sizes,
        source=source,
        place=place_of,
    )
    keep, findings = _sanitise(boxes.xywh, sizes[:, 0], sizes[:, 1], place_of)
    findings += examined.findings
    keep &= ~examined.dropped
    rows = np.flatnonzero(keep)
    boxes = boxes.take(rows[np.argsort(boxes.image[rows], kind="stable")])
    if not known.all():
        images = images.take(np.flatnonzero(known))
        boxes = replace(boxes, image=(np.cumsum(known) - 1)[boxes.image])
        if stems is not None:
            stems = [stems[row] for row in np.flatnonzero(known).tolist()]
    findings += missing_files(root, images.files, source, rules, stems)
    counts = np.bincount(boxes.image, minlength=len(images.files))
    dataset = Dataset(
        label_map=label_map,
        root=str(root),
        files=images.files,
        image_ids=images.ids,
        widths=images.widths,
        heights=images.heights,
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=boxes.xywh,
        labels=boxes.labels,
        areas=boxes.areas,
        crowd=boxes.crowd,
    )
    return ReadResult(dataset, tuple(findings))


def missing_files(
    root: Path,
    files: Sequence[str],
    source: Path,
    rules: ReadRules = USUAL,
    stems: Sequence[str] | None = None,
) -> list[Finding]:
    """A finding when some of ``files`` are not below ``root``; the arguments as above.

    Raises:
        DataError: none of them is.
        SecurityError: a file name leads out of ``root``.
    """
    if not rules.need_images:
        return []
    missing = check_files(root, files, follow_links=rules.follow_links)
    return missing_images(missing, files, source, root, lambda: Lookalikes.below(root), stems)


def missing_images(
    missing: Sequence[int],
    files: Sequence[str],
    source: Path,
    where: Path | str,
    there: Callable[[], Lookalikes],
    stems: Sequence[str] | None = None,
) -> list[Finding]:
    """A finding when images are missing.

    Args:
        missing: positions among ``files``.
        files: as annotated.
        source: annotation file, for messages.
        where: folder or address that they should be below.
        there: what is below it.
        stems: of the annotation file of each image, where each has one.

    Raises:
        DataError: all are missing.
    """
    if not missing:
        return []
    others = there()
    likely = {
        i: others.of(files[i], None if stems is None else stems[i]) for i in missing[:MAX_EXAMPLES]
    }
    if len(missing) == len(files):
        first = likely[missing[0]]
        step = (
            f"{first}: correct the names in the annotations"
            if first
            else "point data.root, or the images of this split, at their folder"
        )
        raise DataError(
            f"none of the {len(missing)} images of {source} is in {where}; the first is "
            f"{files[0]}\n{step}"
        )
    places = [f"{files[i]} ({likely[i]})" if likely.get(i) else files[i] for i in missing]
    return [Finding.at(MISSING_IMAGE, "will be replaced by another image", places)]


def _sanitise(
    xywh: NDArray[np.float64],
    widths: NDArray[np.int32],
    heights: NDArray[np.int32],
    place: Callable[[int], str],
) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Which boxes can be used, and what is wrong with the others."""
    x, y, w, h = xywh.T
    right, bottom = x + w, y + h
    negative = (w < 0) | (h < 0)
    # Comparing sums finds sides that are positive, but too small for the coordinate they add to.
    empty = ~negative & ((right == x) | (bottom == y))
    outside = ~(negative | empty) & ((x >= widths) | (y >= heights) | (right <= 0) | (bottom <= 0))
    dropped = negative | empty | outside
    over_edge = ~dropped & ((x < 0) | (y < 0) | (right > widths) | (bottom > heights))
    findings = [
        Finding.at(kind, action, [place(int(row)) for row in np.flatnonzero(rows)])
        for kind, rows, action in (
            ("negative_size_box", negative, "dropped"),
            ("zero_size_box", empty, "dropped"),
            ("outside_box", outside, "dropped"),
            ("over_edge_box", over_edge, "clipped for training"),
        )
        if rows.any()
    ]
    return ~dropped, findings
