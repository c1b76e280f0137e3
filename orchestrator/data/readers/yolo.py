"""Reader of YOLO annotations: one text file an image, boxes as fractions of the image.

Source: the Darknet format, https://github.com/AlexeyAB/darknet, section "How to train to detect
your custom objects". Each line is ``class x_centre y_centre width height``, all but the class
divided by the image's width or height. An image without a label file has no objects. The label file
of ``images/a.jpg`` is ``labels/a.txt``.

Label files of other tasks, as https://docs.ultralytics.com/datasets has them, are read where
:attr:`ReadRules.task` says so: of outlines (``class x y x y ...``; four corners where boxes are
turned) the upright boxes around them, of key points (``class`` and box first) the box.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path, PurePath

from orchestrator.data.findings import Finding, Problems, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.build import build_dataset, missing_files
from orchestrator.data.readers.numbers import EXACT, number, shown
from orchestrator.data.readers.paths import (
    USUAL,
    ReadRules,
    files_in_order,
    require_folder,
    split_key,
)
from orchestrator.data.readers.plausibility import refuse_other_fractions
from orchestrator.data.readers.text_files import (
    BoxList,
    header_sizes,
    images_of,
    read_lines,
    report_duplicates,
)
from orchestrator.data.readers.txt import class_label
from orchestrator.errors import DataError, SecurityError
from orchestrator.layouts.data_yaml import labels_beside
from orchestrator.layouts.files import IMAGE_SUFFIXES, is_file, is_folder, link_out
from orchestrator.layouts.layout import Task
from orchestrator.layouts.recognise import CLASSES_FILE

#: Files beside images that nobody takes for some.
_NO_IMAGES = frozenset(
    (
        *("", ".txt", ".cache", ".json", ".xml", ".yaml", ".yml", ".md", ".csv", ".db"),
        *(".labels", ".names", ".data"),
    )
)
#: Pixels are rounded to this, far below what a float64 can tell apart at any size of an image. It
#: undoes the division by a width that no decimal fraction can express.
PIXEL_QUANTUM = Decimal("1e-30")

_VALUES = ("x_centre", "y_centre", "width", "height")
_HALF = Decimal("0.5")


#: Kind and action of the finding about lines with more than a box, by task.
_OTHERS: dict[Task, tuple[str, str]] = {
    "segment": ("outline", "the upright box around it"),
    "obb": ("rotated_box", "the upright box around it"),
    "pose": ("key_points", "left out; the box is used"),
}


class _Boxes(BoxList):
    """Boxes, and the places of lines with more than a box."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[str] = []


def read_yolo(
    images_dir: str | Path, annotations: str | Path, classes: LabelMap, rules: ReadRules = USUAL
) -> ReadResult:
    """Read one split of a YOLO data set.

    Ids of images count from 1. An image whose header cannot be read has no size and is left out,
    with a finding.

    Args:
        images_dir: folder of the images.
        annotations: a folder of label files, which are those of all images below ``images_dir`` in
            the order of their names; or a text file that lists the images, one path a line,
            relative to that file. Label files then lie in ``labels``, at the place that ``images``
            has in ``images_dir``; where no folder on that path is called ``images``, beside the
            images.
        classes: by number.
        rules: what the files are read by.

    Raises:
        DataError: something is missing or cannot be understood; the first hundred are listed.
        SecurityError: a path leads out of ``images_dir``.
    """
    root = require_folder(Path(images_dir), what="image folder", key=split_key("images"))
    source = Path(annotations)
    problems = Problems(str(source))
    labels, files, label_files = yolo_files(root, source, problems, rules)
    _report_other_spellings(labels, label_files, problems)
    problems.raise_any()
    # Before any of them is opened, they must be known to lie below the folder.
    missing_files(root, files, source, rules)
    sizes, findings = header_sizes(root, files, rules.orientation)
    boxes = _Boxes()
    for position, name in enumerate(label_files):
        if sizes[position] != (0, 0):
            if not rules.follow_links:
                _refuse_link_out(labels, name)
            _read_labels(labels, name, position, sizes[position], classes, rules, boxes, problems)
    problems.raise_any()
    if boxes.others:
        findings.append(Finding.at(*_OTHERS[rules.task], boxes.others))
    if is_folder(source):
        findings += [*_orphans(labels, frozenset(label_files), rules), *_passed_over(root, rules)]

    def place(row: int) -> str:
        return f"{labels.name}/{label_files[boxes.image(row)]}:{boxes.lines[row]}"

    images, columns = images_of(files, sizes), boxes.columns()
    if rules.task == "detect":
        refuse_other_fractions(columns.xywh, images.sizes(columns.image), source, place)
    result = build_dataset(root, classes, images, columns, source=source, place=place, rules=rules)
    return ReadResult(result.dataset, (*findings, *result.findings))


def yolo_files(
    root: Path, source: Path, problems: Problems, rules: ReadRules
) -> tuple[Path, list[str], list[str]]:
    """The folder of label files, the images relative to ``root``, and the label file of each.

    Raises:
        DataError: there are no images, or no such folder or list.
        SecurityError: a path of the list, or a linked folder, leads out of ``root``.
    """
    if is_folder(source):
        labels = source.resolve()
        files = places = _all_images(root, rules)
        if not files:
            raise DataError(f"{root}: holds no image; point data.train.images at their folder")
    else:
        if not is_file(source):
            require_folder(source, what="label folder or list", key=split_key("annotations"))
        labels = labels_beside(root)
        files, places = _listed_images(root, source)
        if not files:
            problems.add(f"{source.name}:1", "is empty, expected one image path a line")
    report_duplicates(files, places, problems)
    label_files = [PurePath(file).with_suffix(".txt").as_posix() for file in files]
    _report_shared(files, label_files, problems)
    return labels, files, label_files


def all_labels(folder: Path, rules: ReadRules) -> list[str]:
    """The label files below a folder, in the order of their names."""
    return [name for name in files_in_order(folder, rules) if _suffix(name) == ".txt"]


def _all_images(root: Path, rules: ReadRules) -> list[str]:
    # A link to nothing is an image that cannot be read, not one that was never there.
    return [
        name
        for name in files_in_order(root, rules)
        if _suffix(name) in IMAGE_SUFFIXES and (is_file(root / name) or (root / name).is_symlink())
    ]


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def _listed_images(root: Path, source: Path) -> tuple[list[str], list[str]]:
    """Images of a list, relative to ``root``, and where each is named."""
    files, places, away = [], [], []
    folder = source.absolute().parent.resolve()
    for line, text in read_lines(source):
        place = f"{source.name}:{line}"
        path = os.path.normpath(folder / text) if "\0" not in text else text
        file = os.path.relpath(path, root)
        if file == "." or file.startswith(".." + os.sep) or file == "..":
            away.append(f"  {place}: {shown(text)}")
        files.append(file)
        places.append(place)
    if away:
        raise SecurityError(
            "\n".join(
                [f"{source}: {len(away)} path(s) lead out of the image folder {root}", *away[:100]]
            )
        )
    return files, places


def _report_shared(files: list[str], label_files: list[str], problems: Problems) -> None:
    """Two images of one name would share their labels."""
    first: dict[str, str] = {}
    for file, label_file in zip(files, label_files, strict=True):
        other = first.setdefault(label_file, file)
        if other != file:
            problems.add(file, f"shares the label file {label_file} with {other}")


def _report_other_spellings(labels: Path, names: Sequence[str], problems: Problems) -> None:
    """Report label files that are there by another spelling: their images would have no objects.

    That is what is left of ``ü`` when an archive of a Mac is opened elsewhere, or of ``A.TXT``.
    """
    by_folder = defaultdict(list)
    for name in names:
        by_folder[PurePath(name).parent].append(name)
    known = frozenset(names)
    for folder, own in by_folder.items():
        try:
            # Listed once, since looking for each file takes as long as reading it on a network.
            entries = {path.name for path in (labels / folder).iterdir()}
        except OSError:
            continue
        lacking = [name for name in own if PurePath(name).name not in entries]
        there = {_folded(one): (folder / one).as_posix() for one in entries} if lacking else {}
        for name in lacking:
            other = there.get(_folded(PurePath(name).name))
            # Some file systems take both spellings for one.
            if other is not None and other not in known and not os.path.lexists(labels / name):
                problems.add(
                    f"{labels.name}/{other}",
                    f"is the label file of no image, and {name!a} is not there, which differs "
                    "in capitals or in how its letters are composed; rename it",
                )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_link_out(labels: Path, name: str) -> None:
    real = Path(os.path.realpath(labels / name))
    if not real.is_relative_to(labels):
        raise link_out(f"{labels.name}/{name}", real, labels)


def _read_labels(
    folder: Path,
    name: str,
    position: int,
    size: tuple[int, int],
    classes: LabelMap,
    rules: ReadRules,
    boxes: _Boxes,
    problems: Problems,
) -> None:
    path = folder / name
    # A link to nothing is no image without objects: its labels were lost.
    if not os.path.lexists(path):
        return
    shown_name = f"{folder.name}/{name}"
    try:
        lines = read_lines(path)
    except DataError as error:
        problems.add(shown_name, str(error))
        return
    for line, text in lines:
        try:
            xywh, label = _box(text, size, classes, rules.task)
        except ValueError as error:  # noqa: PERF203 - every bad line is to be listed
            problems.add(f"{shown_name}:{line}", str(error))
        else:
            boxes.add(position, xywh, label, False, line)
            if len(text.split()) > 5:
                boxes.others.append(f"{shown_name}:{line}")


def _box(
    text: str, size: tuple[int, int], classes: LabelMap, task: Task
) -> tuple[tuple[float, float, float, float], int]:
    """The box in pixels, and the label, of one line."""
    parts = text.split()
    if task == "pose":
        parts = parts[:5]
    outline = task == "segment" and len(parts) >= 7 and len(parts) % 2 == 1
    outline |= task == "obb" and len(parts) == 9
    if len(parts) != 5 and not outline:
        hint = ""
        if len(parts) > 6 and task == "detect":
            takes = "with --task, `orchestrator init` takes the boxes"
            hint = f"; outlines of segments are not boxes: {takes}"
        elif len(parts) == 6:
            hint = "; a sixth is the score of a prediction, or the angle of a turned box"
        raise ValueError(f"has {len(parts)} values, expected class {' '.join(_VALUES)}{hint}")
    label = class_label(parts[0], classes)
    names = _VALUES if not outline else ("x", "y") * (len(parts) // 2)
    values = [_fraction(name, part) for name, part in zip(names, parts[1:], strict=True)]
    if outline:
        xs, ys = values[0::2], values[1::2]
        left, top = min(xs), min(ys)
        w, h = EXACT.subtract(max(xs), left), EXACT.subtract(max(ys), top)
    else:
        x, y, w, h = values
        left = EXACT.subtract(x, EXACT.multiply(w, _HALF))
        top = EXACT.subtract(y, EXACT.multiply(h, _HALF))
    height, width = size
    return (
        _pixels(left, width),
        _pixels(top, height),
        _pixels(w, width),
        _pixels(h, height),
    ), label


def _fraction(name: str, part: str) -> Decimal:
    value = number(name, part)
    if not -1 <= value <= 2:
        raise ValueError(f"{name} is {shown(part)}, expected a fraction of the image, 0 to 1")
    return value


def _pixels(fraction: Decimal, side: int) -> float:
    pixels = EXACT.multiply(fraction, Decimal(side))
    return float(pixels.quantize(PIXEL_QUANTUM, ROUND_HALF_EVEN, EXACT))


def _passed_over(root: Path, rules: ReadRules) -> list[Finding]:
    """Files among the images that are of no kind that is decoded, such as HEIC."""
    others = [
        name
        for name in files_in_order(root, rules)
        if _suffix(name) not in IMAGE_SUFFIXES
        and _suffix(name) not in _NO_IMAGES
        and is_file(root / name)
    ]
    if not others:
        return []
    action = "not used, being of no kind of image that is read"
    return [Finding.at("passed_over", action, others)]


def _orphans(folder: Path, known: frozenset[str], rules: ReadRules) -> list[Finding]:
    """Label files that belong to no image; a list of class names among them is none."""
    orphans = [
        name
        for name in all_labels(folder, rules)
        if name not in known and PurePath(name).name != CLASSES_FILE
    ]
    if not orphans:
        return []
    return [Finding.at("labels_without_image", "not used", orphans)]
