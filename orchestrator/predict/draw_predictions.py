"""Predictions and ground truth on their pictures: one file each, and contact sheets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import STORED, BadImageError, Decoding, read_header
from orchestrator.data.label_map import LabelMap
from orchestrator.data.orientation import UPRIGHT, Orientation, swaps_sides, turned_boxes
from orchestrator.errors import DataError
from orchestrator.evaluation.drawing import Mark, contact_sheet, draw, encode_jpeg
from orchestrator.predict.identify import identify
from orchestrator.predict.inputs import UPRIGHT_PICTURES, Picture, read_pictures
from orchestrator.predict.prediction import Prediction
from orchestrator.storage.address import is_remote
from orchestrator.storage.atomic import write_atomic

_SHEET_PICTURES = 24
#: Folders that become part of a file's name, at most.
_MOST_FOLDERS = 6
#: Bytes of a file's name without digest, number and suffix; file systems take 255.
_MOST_BYTES = 220


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


@dataclass(frozen=True)
class Truth:
    """Ground truth to draw below predictions.

    Attributes:
        dataset: boxes and the names of their images.
        source: of them, for messages.
        orientation: whose boxes they are, where the size of an image does not tell.
    """

    dataset: Dataset
    source: str
    orientation: Orientation = "stored"


def draw_predictions(
    found: Sequence[Prediction],
    label_map: LabelMap,
    folder: Path,
    *,
    threshold: float,
    truth: Truth | None = None,
    sheets: bool = False,
    pictures: Mapping[str, Picture] | None = None,
    decoding: Decoding = UPRIGHT_PICTURES,
) -> Drawn:
    """Draw predictions on their pictures; a picture without any is drawn as it is.

    Args:
        found: what was predicted.
        label_map: names of the labels.
        folder: for the new files; made when missing.
        threshold: lowest score that is drawn.
        truth: boxes drawn thin below them, in the colours of their classes by name. A picture is
            the image whose file name its key ends in, folders included.
        sheets: also put the pictures side by side, 24 to a sheet.
        pictures: by key; a picture that is not among them is where its key says.
        decoding: how the pictures were looked at.

    Raises:
        DataError: it is not certain which image of ``truth`` a picture is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [one for one in found if one.problem is None]
    below = None if truth is None else _TruthMarks(truth, [one.key for one in wanted], label_map)
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
    chosen = [known.get(one.key) or _picture(one.key) for one in wanted]
    read = read_pictures(chosen, decoding)
    for one, name, (picture, pixels) in zip(wanted, names, read, strict=True):
        if isinstance(pixels, BadImageError):
            problems.append(str(pixels))
            continue
        marks = marks_of(one, label_map, threshold)
        as_stored = _as_predicted(one, picture, pixels)
        pixels = pixels if as_stored is None else as_stored
        if below is not None:
            try:
                marks += below.of(one.key, picture, pixels.shape[:2], upright=as_stored is None)
            except BadImageError as error:
                problems.append(str(error))
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


def _as_predicted(
    one: Prediction, picture: Picture, pixels: NDArray[np.uint8]
) -> NDArray[np.uint8] | None:
    """The picture as stored, if that alone is of the size it was predicted on; else None."""
    size = one.height, one.width
    if pixels.shape[:2] == size or picture.frame is not None:
        return None
    ((_, stored),) = read_pictures([picture], STORED)
    return None if isinstance(stored, BadImageError) or stored.shape[:2] != size else stored


class _TruthMarks:
    """Thin marks of the image that a picture is.

    Args:
        truth: the boxes.
        keys: of all pictures.
        label_map: of the predictions, whose labels decide the colours.
    """

    def __init__(self, truth: Truth, keys: Sequence[str], label_map: LabelMap) -> None:
        self._truth = truth
        frames = {key: _picture(key).path for key in keys}
        images = identify(dict.fromkeys(frames.values()), truth.dataset.files, source=truth.source)
        self._position = {
            key: images.position[path] for key, path in frames.items() if path in images.position
        }
        labels = {name: label for label, name in enumerate(label_map.names)}
        self._labels = [
            labels.setdefault(name, len(labels)) for name in truth.dataset.label_map.names
        ]

    def of(self, key: str, picture: Picture, size: tuple[int, int], *, upright: bool) -> list[Mark]:
        """Marks of a picture.

        Args:
            key: of the picture.
            picture: where it is.
            size: (height, width) of the pixels it is drawn on.
            upright: whether these were turned by their tag.

        Raises:
            BadImageError: it is of another size than annotated.
        """
        data = self._truth.dataset
        if key not in self._position:
            return []
        at = self._position[key]
        rows = data.boxes_of(at)
        xywh = data.boxes_xywh[rows]
        boxes = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        tag = UPRIGHT
        if upright and picture.frame is None and not is_remote(picture.path):
            tag = read_header(Path(picture.path)).tag
        declared = int(data.heights[at]), int(data.widths[at])
        ambiguous = not swaps_sides(tag) or declared[0] == declared[1]
        stored = self._truth.orientation == "stored" if ambiguous else declared != size
        if (declared[::-1] if stored and swaps_sides(tag) else declared) != size:
            raise BadImageError(
                f"{key}: is {size[1]}x{size[0]} pixels, but {self._truth.source} says "
                f"{declared[1]}x{declared[0]}; drawn without its annotations"
            )
        if stored:
            boxes = turned_boxes(boxes, declared, tag)
        return [
            Mark((box[0], box[1], box[2], box[3]), self._labels[label], thin=True)
            for box, label in zip(boxes.tolist(), data.labels[rows].tolist(), strict=True)
        ]


def _picture(key: str) -> Picture:
    """Inverse of :attr:`Picture.key`."""
    path, mark, frame = key.rpartition("#")
    if mark and frame.isdigit() and not Path(key).exists():
        return Picture(path, int(frame))
    return Picture(key)


def _file_names(keys: Sequence[str]) -> Iterator[str]:
    """A JPEG name for each key: as much of its end as tells it from others, or numbered.

    A name too long for a file system is cut, and a digest of the whole makes it unique again.
    """
    parts = {key: [part for part in Path(key).parts if part != "/"] or [key] for key in keys}
    depth = dict.fromkeys(keys, 1)
    for _ in range(_MOST_FOLDERS):
        stems = {key: "-".join(parts[key][-depth[key] :]) for key in keys}
        counts = Counter(stems.values())
        for key in depth:
            if counts[stems[key]] > 1 and depth[key] < len(parts[key]):
                depth[key] += 1
    taken: set[str] = set()
    for key in keys:
        stem = _cut("-".join(parts[key][-depth[key] :]).replace("#", "-"))
        name, number = f"{stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        taken.add(name)
        yield name


def frame_name(key: str) -> str:
    """The JPEG name of a frame of a video or camera."""
    return f"{_cut(Path(key).name.replace('#', '-'))}.jpg"


def _cut(stem: str) -> str:
    encoded = stem.encode("utf-8", "surrogateescape")
    if len(encoded) <= _MOST_BYTES:
        return stem
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[:_MOST_BYTES].decode('utf-8', 'ignore')}-{digest}"
