"""Reader of one-file annotations in text, as the MindSpore SSD and YOLOv3 recipes take them.

Each line is an image and its boxes: ``path xmin,ymin,xmax,ymax,class[,iscrowd] ...`` in pixels from
0, right and bottom exclusive. A path with blanks stands in double quotes. A line with a path alone
is an image without objects. Sizes are not in the text and are read from the image files.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.findings import Problems, ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.build import build_dataset, missing_files
from orchestrator.data.readers.numbers import EXACT, integer, number, shown
from orchestrator.data.readers.paths import (
    USUAL,
    ReadRules,
    relative_names,
    require_file,
    require_folder,
    split_key,
)
from orchestrator.data.readers.text_files import (
    BoxList,
    fields_of,
    header_sizes,
    images_of,
    read_lines,
    report_duplicates,
)

_COORDINATES = ("xmin", "ymin", "xmax", "ymax")


def read_txt(
    images_dir: str | Path, annotations: str | Path, classes: LabelMap, rules: ReadRules = USUAL
) -> ReadResult:
    """Read one split of a TXT data set.

    The id of an image is the position of its line, from 1. An image whose header cannot be read has
    no size and is left out, with a finding.

    Args:
        images_dir: folder that the paths are relative to.
        annotations: the text file.
        classes: by number.
        rules: what the files are read by.

    Raises:
        DataError: something is missing or cannot be understood; the first hundred are listed.
        SecurityError: a path leads out of ``images_dir``.
    """
    root = require_folder(Path(images_dir), what="image folder", key=split_key("images"))
    source = require_file(Path(annotations), what="annotation file", key=split_key("annotations"))
    problems = Problems(str(source))
    lines = read_lines(source)
    if not lines:
        problems.add(f"{source.name}:1", "is empty, expected a path and its boxes in each line")
    places = [f"{source.name}:{line}" for line, _ in lines]
    boxes = BoxList()
    files = []
    for position, (line, text) in enumerate(lines):
        file, *fields = _fields(text, places[position], problems)
        files.append(file)
        for column, field in enumerate(fields, start=2):
            try:
                box = _box(field, classes)
            except ValueError as error:  # noqa: PERF203 - every bad field is to be listed
                problems.add(places[position], f"field {column}: {error}")
            else:
                boxes.add(position, *box, line)
    files = relative_names(root, files)
    report_duplicates(files, places, problems)
    problems.raise_any()
    # Before any of them is opened, they must be known to lie below the folder.
    missing_files(root, files, source, rules)
    sizes, findings = header_sizes(root, files, rules.orientation)
    result = build_dataset(
        root,
        classes,
        images_of(files, sizes),
        boxes.columns(),
        source=source,
        place=lambda row: f"{source.name}:{boxes.lines[row]}",
        rules=rules,
    )
    return ReadResult(result.dataset, (*findings, *result.findings))


def _fields(text: str, place: str, problems: Problems) -> list[str]:
    """The path of a line and its boxes; where it cannot be split, a problem and the line."""
    try:
        return list(fields_of(text))
    except ValueError as error:
        problems.add(place, str(error))
        return [text]


def _box(field: str, classes: LabelMap) -> tuple[tuple[float, float, float, float], int, bool]:
    """The box, label and crowd flag of one field."""
    parts = field.split(",")
    if len(parts) not in (5, 6):
        raise ValueError(
            f"{shown(field)} has {len(parts)} values, expected xmin,ymin,xmax,ymax,class[,iscrowd]"
        )
    left, top, right, bottom = map(number, _COORDINATES, parts)
    for low, high, axis in ((left, right, "x"), (top, bottom, "y")):
        if low > high:
            raise ValueError(f"{axis}min {low} is greater than {axis}max {high}")
    label = class_label(parts[4], classes)
    crowd = len(parts) == 6 and integer("iscrowd", parts[5], low=0, high=1) == 1
    width, height = EXACT.subtract(right, left), EXACT.subtract(bottom, top)
    return (float(left), float(top), float(width), float(height)), label, crowd


def class_label(text: str, classes: LabelMap) -> int:
    """The label of a class given by its number.

    Raises:
        ValueError: no whole number, or none of the classes.
    """
    first, last = classes.ids[0], classes.ids[-1]
    try:
        return classes.label_of_id[integer("class", text, low=first, high=last)]
    except ValueError as error:
        if text == str(last + 1):
            raise ValueError(
                f"{error}; the first of the {len(classes)} classes is {first}"
            ) from None
        raise
