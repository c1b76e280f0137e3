"""Predictions and ground truth on their pictures: one file each, and contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import DataError
from orchestrator.evaluation.drawing import Mark, contact_sheet, draw, encode_jpeg
from orchestrator.predict.inputs import Picture, read_pictures
from orchestrator.predict.prediction import Prediction
from orchestrator.storage.atomic import write_atomic

_SHEET_PICTURES = 24


@dataclass(frozen=True)
class Drawn:
    """What :func:`draw_predictions` left behind.

    Attributes:
        pictures: files with one picture each.
        sheets: files with many.
        problems: a line for each picture that could not be read.
    """

    pictures: tuple[Path, ...]
    sheets: tuple[Path, ...]
    problems: tuple[str, ...]


def read_seed_json(tree: Any, source: Path) -> tuple[list[Prediction], LabelMap]:
    """Predictions and classes of a file in the seed's form.

    Raises:
        DataError: another form.
    """
    names: dict[int, tuple[str, int]] = {}
    found = []
    try:
        for key, entry in tree.items():
            for one in entry["predictions"]:
                kind = one["class"]
                names[int(kind["label"])] = (str(kind["name"]), int(kind["category_id"]))
            corners = [
                [b["x_min"], b["y_min"], b["x_min"] + b["width"], b["y_min"] + b["height"]]
                for b in (one["bbox"] for one in entry["predictions"])
            ]
            found.append(
                Prediction(
                    key=str(key),
                    height=int(entry["height"]),
                    width=int(entry["width"]),
                    boxes=[[float(value) for value in box] for box in corners],
                    labels=[int(one["class"]["label"]) for one in entry["predictions"]],
                    scores=[float(one["score"]) for one in entry["predictions"]],
                )
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source}: is not what `orchestrator predict` writes ({type(error).__name__}: {error})"
        ) from error
    # Classes nobody was found of have no name in the file, and need none here.
    top = max(names, default=0) + 1
    used = [names.get(label, (f"label {label}", -1 - label)) for label in range(top)]
    return found, LabelMap(tuple(name for name, _ in used), tuple(number for _, number in used))


def draw_predictions(
    found: Sequence[Prediction],
    label_map: LabelMap,
    folder: Path,
    *,
    threshold: float,
    truth: Dataset | None = None,
    sheets: bool = False,
    pictures: Mapping[str, Picture] | None = None,
) -> Drawn:
    """Draw predictions on their pictures; a picture without any is drawn as it is.

    Args:
        found: what was predicted.
        label_map: names of the labels.
        folder: for the new files; made when missing.
        threshold: lowest score that is drawn.
        truth: boxes drawn thin below them, found by file name.
        sheets: also put the pictures side by side, 24 to a sheet.
        pictures: by key; a picture that is not among them is where its key says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [one for one in found if one.problem is None]
    boxes_of = {} if truth is None else _truth_marks(truth)
    files: list[Path] = []
    written: list[Path] = []
    problems: list[str] = []
    held: list[NDArray[np.uint8]] = []

    def flush() -> None:
        if sheets and held:
            file = folder / f"sheet-{len(written):04d}.jpg"
            write_atomic(file, encode_jpeg(contact_sheet(held)))
            written.append(file)
            held.clear()

    names = _file_names([one.key for one in wanted])
    known = pictures or {}
    read = read_pictures([known.get(one.key) or _picture(one.key) for one in wanted])
    for one, name, (_, pixels) in zip(wanted, names, read, strict=True):
        if isinstance(pixels, BadImageError):
            problems.append(str(pixels))
            continue
        marks = [*marks_of(one, label_map, threshold), *boxes_of.get(Path(one.key).name, [])]
        drawn = draw(pixels, marks)
        write_atomic(folder / name, encode_jpeg(drawn))
        files.append(folder / name)
        held.append(drawn)
        if len(held) == _SHEET_PICTURES:
            flush()
    flush()
    return Drawn(tuple(files), tuple(written), tuple(problems))


def marks_of(one: Prediction, label_map: LabelMap, threshold: float) -> list[Mark]:
    """Marks for the detections of at least a score."""
    return [
        Mark((box[0], box[1], box[2], box[3]), label, f"{label_map.names[label]} {score:.2f}")
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
        if score >= threshold
    ]


def _truth_marks(truth: Dataset) -> dict[str, list[Mark]]:
    """Thin marks by the file name, without its folder."""
    return {
        Path(file).name: [
            Mark(
                (box[0], box[1], box[0] + box[2], box[1] + box[3]),
                int(truth.labels[row]),
                thin=True,
            )
            for row, box in (
                (row, truth.boxes_xywh[row].tolist())
                for row in range(int(truth.offsets[i]), int(truth.offsets[i + 1]))
            )
        ]
        for i, file in enumerate(truth.files)
    }


def _picture(key: str) -> Picture:
    """Inverse of :attr:`Picture.key`."""
    path, mark, frame = key.rpartition("#")
    if mark and frame.isdigit() and not Path(key).exists():
        return Picture(path, int(frame))
    return Picture(key)


def _file_names(keys: Sequence[str]) -> Iterator[str]:
    """A JPEG name for each key: its own last part, numbered where two would be the same."""
    taken: set[str] = set()
    for key in keys:
        stem = Path(key).name.replace("#", "-")
        name, number = f"{stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        taken.add(name)
        yield name
