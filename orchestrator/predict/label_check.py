"""``orchestrator check --with RUN``: the boxes that a detector contradicts, as lists and a page."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.config.schema import DataConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.errors import printable
from orchestrator.evaluation.coco import cell
from orchestrator.evaluation.label_errors import Suspect, find_suspects
from orchestrator.pages.charts import image_uri
from orchestrator.pages.document import Block, Figure, Gallery, Legend, Section, Text, css, render
from orchestrator.pages.drawing import Mark, colour_of, draw, encode_jpeg
from orchestrator.predict.identify import match_classes
from orchestrator.predict.loading import LoadedDetector
from orchestrator.predict.predictor import DetectOptions
from orchestrator.predict.scoring import detections_of
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.plain_files import read_json

#: Suspects that the page shows.
SHOWN = 60
#: Below it nobody need look.
LEAST = 0.2
_COLUMNS = (
    *("rank", "kind", "suspicion", "split", "image_id", "file_name", "annotation_id"),
    *("category", "x", "y", "width", "height"),
    *("found_category", "found_score", "found_x", "found_y", "found_width", "found_height"),
)
_WORDS = {
    "missed": "no box here",
    "spurious": "a box, and nothing found",
    "wrong_class": "another class",
    "wrong_place": "another place",
}
_MARGIN, _PICTURE = 0.75, 320
#: Classes of a legend.
_MOST_COLOURS = 40


@dataclass(frozen=True)
class Listed:
    """A suspect with the names that lead back to its annotation.

    Attributes:
        suspect: the contradiction.
        split: of the data set.
        data: that split.
        annotation_id: of the box in a COCO file; None where it has none, or a box is missing.
    """

    suspect: Suspect
    split: str
    data: Dataset
    annotation_id: int | None

    def __str__(self) -> str:
        tree, names = self.to_json(), self.data.label_map.names
        text = f"{_WORDS[self.suspect.kind]} ({self.suspect.suspicion:.2f}): {tree['file_name']}"
        if self.suspect.kind != "missed":
            text += f", annotated {names[self.suspect.label]}"
            text += "" if self.annotation_id is None else f", annotation {self.annotation_id}"
        if tree["found"] is not None:
            text += f", found {tree['found']['category']} {tree['found']['score']:.2f}"
        return text

    def to_json(self) -> dict[str, Any]:
        """As the list has it."""
        one, names = self.suspect, self.data.label_map.names
        return {
            "kind": one.kind,
            "suspicion": round(one.suspicion, 4),
            "split": self.split,
            "image_id": int(self.data.image_ids[one.image]),
            "file_name": self.data.files[one.image],
            "annotation_id": self.annotation_id,
            "category": names[one.label],
            "bbox": _xywh(one.box),
            "found": None
            if one.found_box is None or one.found_label is None
            else {
                "category": names[one.found_label],
                "score": round(one.found_score or 0.0, 4),
                "bbox": _xywh(one.found_box),
            },
        }


def check_labels(
    loaded: LoadedDetector,
    splits: Mapping[str, Dataset],
    config: DataConfig,
    *,
    watch: Callable[[str], None] = lambda line: None,
) -> list[Listed]:
    """What the detector contradicts in the splits of a data set, the most suspicious first.

    Args:
        loaded: the detector; its classes are those of the data set by name.
        splits: the annotations.
        config: that names them.
        watch: told what an image could not be looked at for, and how classes were mapped.

    Raises:
        DataError: other classes.
    """
    how = DetectOptions(loaded.resolved.experiment.detector.postprocess, tiles=loaded.tiles)
    listed: list[Listed] = []
    for name, data in splits.items():
        match = match_classes(
            loaded.label_map, data.label_map, here="the detector", there=f"data.{name}"
        )
        if match.note is not None:
            watch(match.note)
        found, unreadable = detections_of(loaded, data, how)
        for line in unreadable:
            watch(f"not looked at: {line}")
        mapped = replace(found, labels=match.labels[found.labels])
        ids = annotation_ids(data, _coco_file(config, name))
        listed += [
            Listed(one, name, data, None if one.row is None else ids.get(one.row))
            for one in find_suspects(data, mapped)
            if one.suspicion >= LEAST
        ]
    return sorted(listed, key=lambda one: -one.suspect.suspicion)


def _coco_file(config: DataConfig, split: str) -> Path | None:
    section = config.train if split == "train" else config.val
    if config.format != "coco" or section.annotations is None:
        return None
    return Path(config.root).resolve() / section.annotations


def annotation_ids(data: Dataset, file: Path | None) -> dict[int, int]:
    """The id in a COCO file of each box of a data set, by its row; some may have none."""
    if file is None:
        return {}
    try:
        tree = read_json(file)
    except (OSError, ValueError):
        return {}
    by_box: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for one in tree.get("annotations", []):
        if isinstance(one.get("id"), int) and isinstance(one.get("bbox"), list):
            key = (one.get("image_id"), one.get("category_id"), *map(float, one["bbox"]))
            by_box[key].append(one["id"])
    images = data.image_ids.repeat(np.diff(data.offsets)).tolist()
    categories = np.array(data.label_map.ids)[data.labels].tolist()
    found = {}
    for row, (image, category, box) in enumerate(
        zip(images, categories, data.boxes_xywh.tolist(), strict=True)
    ):
        if ids := by_box.get((image, category, *box)):
            found[row] = ids.pop(0)
    return found


def write_suspects(folder: Path, title: str, listed: Sequence[Listed]) -> dict[str, Path]:
    """Leave ``suspects.json``, ``suspects.csv`` and ``suspects.html`` in a folder.

    Returns:
        The files by what they hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"suspects.{kind}" for kind in ("json", "csv", "html")}
    trees = [one.to_json() for one in listed]
    tree = {"detector": title, "suspects": trees}
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    write_atomic(files["json"], text.encode("utf-8", "backslashreplace"))
    write_atomic(files["csv"], _table(trees).encode("utf-8", "surrogatepass"))
    write_atomic(files["html"], _page(title, listed).encode("utf-8", "replace"))
    return files


def _table(trees: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for rank, one in enumerate(trees, start=1):
        found = one["found"] or {"category": "", "score": "", "bbox": [""] * 4}
        writer.writerow(
            [
                *(rank, one["kind"], one["suspicion"], one["split"], one["image_id"]),
                *(cell(one["file_name"]), one["annotation_id"], cell(one["category"])),
                *(one["bbox"] if one["kind"] != "missed" else [""] * 4),
                *(cell(found["category"]), found["score"], *found["bbox"]),
            ]
        )
    return text.getvalue()


def _page(title: str, listed: Sequence[Listed]) -> str:
    figures = []
    colours: dict[str, str] = {}
    for rank, one in enumerate(listed[:SHOWN], start=1):
        try:
            picture = _cut_out(one)
        except BadImageError:
            continue
        for label in (one.suspect.label, one.suspect.found_label):
            if label is not None:
                colours[one.data.label_map.names[label]] = css(colour_of(label))
        uri = image_uri(encode_jpeg(picture), "jpeg")
        figures.append(Figure(uri, printable(f"{rank}. {one}")))
    about = Text(
        f"{len(listed)} suspects, the first {len(figures)} of them here, most suspicious first; "
        f"found by {printable(title)}."
    )
    blocks: list[Block] = [about]
    if figures:
        shown = dict(sorted(colours.items())[:_MOST_COLOURS])
        blocks.append(Legend(shown, (("full", "found"), ("thin", "annotated"))))
        blocks.append(Gallery(tuple(figures), large=True))
    return render("Boxes that a detector contradicts", [Section("", tuple(blocks))])


def _cut_out(one: Listed) -> NDArray[np.uint8]:
    """The surroundings of a suspect, with both boxes."""
    suspect = one.suspect
    image = image_pixels(one.data, suspect.image, declared=False)
    boxes = [box for box in (suspect.box, suspect.found_box) if box is not None]
    low = np.min([box[:2] for box in boxes], axis=0)
    high = np.max([box[2:] for box in boxes], axis=0)
    margin = _MARGIN * max(float((high - low).max()), 16.0)
    left, top = np.maximum(low - margin, 0).astype(int)
    right, bottom = np.minimum(np.ceil(high + margin), (image.shape[1], image.shape[0])).astype(int)
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    scale = _PICTURE / max(part.shape[:2])
    marks = []
    if suspect.found_box is not None and suspect.found_label is not None:
        marks.append(Mark(_moved(suspect.found_box, left, top, scale), suspect.found_label))
    if suspect.kind != "missed":
        marks.append(Mark(_moved(suspect.box, left, top, scale), suspect.label, kind="annotation"))
    size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
    return draw(cv2.resize(part, size, interpolation=cv2.INTER_AREA).astype(np.uint8), marks)


def _moved(
    box: tuple[float, float, float, float], left: float, top: float, scale: float
) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return (x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale, (y1 - top) * scale


def _xywh(box: tuple[float, float, float, float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]


def summary(listed: Sequence[Listed]) -> str:
    """How many of each kind."""
    counts: dict[str, int] = defaultdict(int)
    for one in listed:
        counts[one.suspect.kind] += 1
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
