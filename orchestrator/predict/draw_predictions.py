"""Predictions and annotations on their pictures: one file each, and contact sheets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import STORED, BadImageError, Decoding, read_header
from orchestrator.data.label_map import LabelMap
from orchestrator.data.orientation import UPRIGHT, Orientation, swaps_sides, turned_boxes
from orchestrator.errors import ConfigError, DataError
from orchestrator.evaluation.marks import Boxes, marks_of
from orchestrator.layouts.files import IMAGE_SUFFIXES
from orchestrator.pages.drawing import Mark, contact_sheet, draw, encode_jpeg
from orchestrator.predict.identify import identify, require_all
from orchestrator.predict.inputs import UPRIGHT_PICTURES, Picture, read_pictures
from orchestrator.predict.prediction import Prediction
from orchestrator.storage.address import is_remote
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.plain_files import open_regular

_SHEET_PICTURES = 24
#: In every drawing, by which it is known that it may be replaced.
_COMMENT = b"drawn by orchestrator"
#: Of a file, in which a comment is looked for: it stands behind 20 bytes of JFIF.
_HEAD_BYTES = 64
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
        problems: a line for each picture that could not be read, or is not the one that was
            predicted on.
        unknown: pictures that the annotations know nothing of.
    """

    pictures: tuple[Path, ...]
    sheets: tuple[Path, ...]
    problems: tuple[str, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Truth:
    """Annotations to draw below predictions.

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
    limit: int | None = None,
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
        limit: most detections of a picture that are drawn, the best; None for all.
        truth: annotated boxes, in the colours of their classes by name; detections are then told
            apart into true and false positives at IoU 0.5, and missed boxes marked. A picture is
            the image whose file name its key ends in, folders included.
        sheets: also put the pictures side by side, 24 to a sheet.
        pictures: by key; a picture that is not among them is where its key says.
        decoding: how the pictures were looked at.

    Raises:
        ConfigError: the new files would lie among the pictures, or replace files that are no
            drawings.
        DataError: it is not certain which image of ``truth`` a picture is, or none is any of them;
            or not one picture can be read.
    """
    known = pictures or {}
    chosen = [known.get(one.key) or _picture(one.key) for one in found]
    require_apart(folder, chosen, sheets=sheets)
    folder.mkdir(parents=True, exist_ok=True)
    rows = zip(found, chosen, _names_of(chosen, sheets=sheets), strict=True)
    todo = [row for row in rows if row[0].problem is None]
    below = None if truth is None else _TruthMarks(truth, [one.key for one, *_ in todo], label_map)
    files: list[Path] = []
    written: list[Path] = []
    problems: list[str] = []
    held: list[NDArray[np.uint8]] = []

    def flush() -> None:
        if sheets and held:
            file = folder / _sheet_name(len(written))
            write_drawing(file, contact_sheet(held))
            written.append(file)
            held.clear()

    read = read_pictures([picture for _, picture, _ in todo], decoding)
    for (one, picture, name), (_, pixels) in zip(todo, read, strict=True):
        try:
            seen, upright = _as_predicted(one, picture, pixels)
        except BadImageError as error:
            problems.append(str(error))
            continue
        shown = shown_of(one, threshold, limit)
        marks = plain_marks(shown, label_map)
        if below is not None:
            try:
                told = below.marks(shown, picture, seen, upright=upright)
                marks = marks if told is None else told
            except BadImageError as error:
                problems.append(str(error))
        drawn = draw(seen, marks)
        write_drawing(folder / name, drawn)
        files.append(folder / name)
        held.append(drawn)
        if len(held) == _SHEET_PICTURES:
            flush()
    flush()
    if todo and not files:
        raise DataError(
            f"none of the {len(todo)} pictures can be drawn on; the first: {problems[0]}\n"
            "paths are as `orchestrator predict` was given them: run draw in the same folder"
        )
    unknown = () if below is None else below.unknown
    return Drawn(tuple(files), tuple(written), tuple(problems), unknown)


def require_apart(folder: Path, pictures: Sequence[Picture], *, sheets: bool = False) -> None:
    """Refuse to draw where pictures would be lost: a drawing has the name of its picture.

    Args:
        folder: for the drawings.
        pictures: that are to be drawn on.
        sheets: whether contact sheets are to be made as well.

    Raises:
        ConfigError: the folder is one of theirs, or holds files that drawings would replace and
            that are none themselves.
    """
    target = folder.resolve()
    parents = {Path(one.path).parent for one in pictures if not is_remote(one.path)}
    if target in {parent.resolve() for parent in parents}:
        raise ConfigError(
            f"{folder}: holds pictures that are to be drawn on, and would lose them. Next: name "
            "another folder, such as drawn"
        )
    if folder.is_dir():
        names = {*_names_of(pictures, sheets=sheets), *_sheet_names(len(pictures) if sheets else 0)}
        for file in sorted(entry for entry in folder.iterdir() if entry.name in names):
            _require_drawing(file)


def write_drawing(file: Path, image: NDArray[np.uint8]) -> None:
    """Write a drawing as JPEG, in place of an older one.

    Raises:
        ConfigError: something else has its name.
    """
    if file.exists():
        _require_drawing(file)
    write_atomic(file, encode_jpeg(image, comment=_COMMENT))


def _require_drawing(file: Path) -> None:
    try:
        with open_regular(file) as opened:
            if _COMMENT in opened.read(_HEAD_BYTES):
                return
    except OSError:
        pass  # Nothing that this program has drawn, then.
    raise ConfigError(
        f"{file}: a drawing is to have this name, and what is there is no drawing of this program, "
        "so it is not replaced. Next: name another folder, or remove that file"
    )


def plain_marks(shown: Prediction, label_map: LabelMap) -> list[Mark]:
    """A mark for each detection."""
    return [
        Mark((box[0], box[1], box[2], box[3]), label, f"{label_map.names[label]} {score:.2f}")
        for box, label, score in zip(shown.boxes, shown.labels, shown.scores, strict=True)
    ]


def shown_of(one: Prediction, threshold: float, limit: int | None) -> Prediction:
    """The detections of at least a score; of more than ``limit`` the best."""
    ranked = sorted(range(len(one.scores)), key=lambda row: -one.scores[row])
    rows = [row for row in ranked if one.scores[row] >= threshold][:limit]
    return replace(
        one,
        boxes=[one.boxes[row] for row in rows],
        labels=[one.labels[row] for row in rows],
        scores=[one.scores[row] for row in rows],
    )


def _as_predicted(
    one: Prediction, picture: Picture, pixels: NDArray[np.uint8] | BadImageError
) -> tuple[NDArray[np.uint8], bool]:
    """The picture in the size it was predicted on: as it was read, or else as stored.

    Returns:
        Pixels, and whether they are those that were read.

    Raises:
        BadImageError: it could not be read, or is of that size in neither way.
    """
    if isinstance(pixels, BadImageError):
        raise pixels
    size = one.height, one.width
    if pixels.shape[:2] == size:
        return pixels, True
    if picture.frame is None:
        ((_, stored),) = read_pictures([picture], STORED)
        if not isinstance(stored, BadImageError) and stored.shape[:2] == size:
            return stored, False
    height, width = pixels.shape[:2]
    raise BadImageError(
        f"{one.key}: is {width}x{height} pixels, but was predicted on {one.width}x{one.height}; "
        "predict it again"
    )


class _TruthMarks:
    """Marks of the annotations of the image that a picture is.

    Args:
        truth: the boxes.
        keys: of all pictures.
        label_map: of the predictions, whose labels decide the colours.

    Attributes:
        unknown: pictures that are none of the images.
    """

    def __init__(self, truth: Truth, keys: Sequence[str], label_map: LabelMap) -> None:
        self._truth = truth
        frames = {key: _picture(key).path for key in keys}
        names = truth.dataset.files
        images = identify(dict.fromkeys(frames.values()), names, source=truth.source)
        if keys and not images.position:
            require_all(images, names, source=truth.source)
        self.unknown = images.unknown
        self._position = {
            key: images.position[path] for key, path in frames.items() if path in images.position
        }
        labels = {name: label for label, name in enumerate(label_map.names)}
        self._labels = np.array(
            [labels.setdefault(name, len(labels)) for name in truth.dataset.label_map.names],
            np.int64,
        )
        self._names = list(labels)

    def marks(
        self,
        shown: Prediction,
        picture: Picture,
        pixels: NDArray[np.uint8],
        *,
        upright: bool,
    ) -> list[Mark] | None:
        """Marks of a picture, annotations below detections; None where nothing is known of it.

        Args:
            shown: its detections.
            picture: where it is.
            pixels: that are drawn on.
            upright: whether these were turned by their tag.

        Raises:
            BadImageError: it is of another size than annotated.
        """
        if shown.key not in self._position:
            return None
        drawn, annotations = marks_of(
            Boxes.detected(
                _xywh(np.array(shown.boxes, np.float64)),
                np.array(shown.labels, np.int64),
                np.array(shown.scores, np.float64),
            ),
            self._annotations(shown.key, picture, pixels.shape, upright=upright),
            self._names,
        )
        return [*drawn, *annotations]

    def _annotations(
        self, key: str, picture: Picture, shape: tuple[int, ...], *, upright: bool
    ) -> Boxes:
        """Boxes on pixels of a shape, with labels among those of the predictions."""
        size = shape[0], shape[1]
        data = self._truth.dataset
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
        labels = self._labels[data.labels[rows]]
        return Boxes.annotated(_xywh(np.asarray(boxes, np.float64)), labels, data.crowd[rows])


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    boxes = boxes.reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _picture(key: str) -> Picture:
    """Inverse of :attr:`Picture.key`."""
    path, mark, frame = key.rpartition("#")
    if mark and frame.isdigit() and not Path(key).exists():
        return Picture(path, int(frame))
    return Picture(key)


def _names_of(pictures: Sequence[Picture], *, sheets: bool) -> list[str]:
    """Names of the drawings of pictures, none of which is that of a contact sheet."""
    taken = _sheet_names(len(pictures) if sheets else 0)
    return list(_file_names([one.key for one in pictures], taken))


def _sheet_names(pictures: int) -> list[str]:
    return [_sheet_name(number) for number in range(-(-pictures // _SHEET_PICTURES))]


def _sheet_name(number: int) -> str:
    return f"sheet-{number:04d}.jpg"


def _file_names(keys: Sequence[str], reserved: Sequence[str] = ()) -> Iterator[str]:
    """A JPEG name for each key: ``x.jpg`` for ``x.jpg`` and ``x.png``; none that is reserved.

    Where that is not unique, folders of the key go before it, and the suffix stays that tells two
    files apart. A name too long for a file system is cut, and a digest makes it unique again.
    """
    bare = {key: _without_suffix(key) for key in keys}
    jpeg = {bare[key] for key in keys if Path(key).suffix.lower() == ".jpg"}
    several = {stem for stem, count in Counter(bare.values()).items() if count > 1}
    stems = {
        key: key if stem in several and (stem not in jpeg or stem + ".jpg" != key) else stem
        for key, stem in bare.items()
    }
    parts = {key: [p for p in Path(stem).parts if p != "/"] or [key] for key, stem in stems.items()}
    depth = dict.fromkeys(keys, 1)
    for _ in range(_MOST_FOLDERS):
        names = {key: "-".join(parts[key][-depth[key] :]) for key in keys}
        counts = Counter(names.values())
        for key in depth:
            if counts[names[key]] > 1 and depth[key] < len(parts[key]):
                depth[key] += 1
    taken = set(reserved)
    for key in keys:
        stem = _cut("-".join(parts[key][-depth[key] :]).replace("#", "-"))
        name, number = f"{stem}.jpg", 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}.jpg"
        taken.add(name)
        yield name


def _without_suffix(key: str) -> str:
    """A path without the suffix of an image, which a frame of a video has none of."""
    path = Path(key)
    return key[: -len(path.suffix)] if path.suffix.lower() in IMAGE_SUFFIXES else key


def frame_name(key: str) -> str:
    """The JPEG name of a frame of a video or camera."""
    return f"{_cut(Path(key).name.replace('#', '-'))}.jpg"


def _cut(stem: str) -> str:
    encoded = stem.encode("utf-8", "surrogateescape")
    if len(encoded) <= _MOST_BYTES:
        return stem
    digest = hashlib.sha256(encoded).hexdigest()[:12]
    return f"{encoded[:_MOST_BYTES].decode('utf-8', 'ignore')}-{digest}"
