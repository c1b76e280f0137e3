"""Class names of the formats whose annotations do not list them.

A list has one name a line; the line, counted from 0, is the number of the class. Where the first
name is ``background``, as in lists made for SSD, it is no class, and the numbers of the others
begin at 1. The other forms are the ``data.yaml`` of a YOLO data set, and JSON; see
:mod:`orchestrator.data.readers.class_json`.

Any text is a list of lines, so a list that looks like something else is refused with the line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.data.findings import CONTROL, Problems
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.class_json import read_class_json
from orchestrator.data.readers.numbers import shown
from orchestrator.data.readers.paths import require_file
from orchestrator.data.readers.text_files import read_lines
from orchestrator.errors import DataError
from orchestrator.layouts.data_yaml import read_names
from orchestrator.layouts.files import is_file
from orchestrator.layouts.layout import FORMATS
from orchestrator.layouts.recognise import CLASSES_FILE, classes_beside

BACKGROUND = "background"

_DATA_KEYS = r"path|train|val|valid|test|nc|names|download|roboflow|backup|eval|channels|colors"
#: What a line looks like, and what it then is instead of a name.
_STRANGE: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(rf"({_DATA_KEYS})\s*[:=](\s|$)"), "a key of a data.yaml or data file"),
    (re.compile(r"---|%YAML|\?\s|&|\*\w+$|!!"), "YAML"),
    (re.compile(r"\d+\s*:\s"), "an entry of a map in YAML"),
    (re.compile(r"[\[{\]}],?$|[\[{]\s*[\"'\w\[{]"), "JSON or YAML"),
    (re.compile(r"[\"'].*[\"'],$|[\"'].*[\"']\s*:"), "JSON"),
    (re.compile(r"([\"']).*\1$"), "a name in quotes"),
    (re.compile(r"(<{7}|\|{7}|>{7}) \S|={7}$"), "the mark of a merge in Git that was not resolved"),
    (re.compile(r"version https://git-lfs\.|oid sha256:"), "a pointer of Git LFS (`git lfs pull`)"),
    (re.compile(r"#|//|;|/\*"), "a comment"),
    (re.compile(r"<[!?/\w]"), "XML or HTML"),
    (re.compile(r"(\S+\s+)?(-?\d*\.\d+(e[+-]?\d+)?[\s,]+){2,}", re.IGNORECASE), "boxes"),
    (re.compile(r"\d+(\s+-?\d*\.?\d+){4,}$"), "boxes"),
    (re.compile(r".*\S(\s+\d+){3,}$"), "a name with numbers behind it, such as a colour"),
    (re.compile(r"-?\d*\.\d+$|-?\d+\.\d*$"), "a number"),
    (
        re.compile(r"__?(ignore|background)__?_?$|_+$|-+$|\?+$|\.+$", re.IGNORECASE),
        "a labelling tool's mark for what is no class",
    ),
)
#: First lines that no list of classes begins with: every number after them would be off by one.
_HEADING = re.compile(r"(class|category|object)?[ _-]?names?$|class(es)?$|categor(y|ies)$", re.I)
_BULLETS = ("- ", "* ", "\u2022 ")
_WHOLE = re.compile(r"\d+")
_NUMBERED = re.compile(r"(\d+)[\s.,;:)\]]+\S")
_SEPARATORS = (",", ";", "\t", "|")


def class_file(kind: str, root: Path, given: str | Path | None) -> Path | None:
    """The file that names the classes of a data set.

    Args:
        kind: coco, voc, txt or yolo.
        root: of the data set.
        given: ``data.classes``.

    Returns:
        None where the annotations name them: in COCO, in VOC without such a file, and in formats
        of other packages where none is given.
    """
    if kind == "coco":
        return None
    if given is not None:
        return root / given
    if kind not in FORMATS:
        return None
    if kind == "voc" and not is_file(root / CLASSES_FILE):
        return None
    return classes_beside(root) if kind == "yolo" else root / CLASSES_FILE


def read_classes(path: str | Path) -> LabelMap:
    """The classes of a list of names, of JSON, or of the ``data.yaml`` of a YOLO data set.

    Raises:
        DataError: there is no such file, or it holds no names, one of them twice, or lines that
            are no names.
    """
    path = require_file(Path(path), what="list of classes", key="data.classes")
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".json"):
        listed = read_class_json(path) if suffix == ".json" else read_names(path)
        problems = Problems(str(path))
        for name in listed:
            if CONTROL.search(name):
                what = "a control character, or half of a surrogate pair"
                problems.add(path.name, f"{shown(name)} holds {what}")
            elif not name.strip():
                problems.add(path.name, f"{shown(name)} is no name")
        problems.raise_any()
        start = 1 if listed[0] == BACKGROUND else 0
        if len(listed) == start:
            raise DataError(f"{path}: holds no class but {BACKGROUND}")
        return LabelMap(listed[start:], tuple(range(start, len(listed))))
    lines = read_lines(path)
    problems = Problems(str(path))
    seen: dict[str, int] = {}
    for number, name in lines:
        if CONTROL.search(name):
            problems.add(f"{path.name}:{number}", f"{shown(name)} holds a control character")
        first = seen.setdefault(name, number)
        if first != number:
            problems.add(
                f"{path.name}:{number}", f"{shown(name)} is already the class of line {first}"
            )
    for number, what in _no_names(lines):
        text = next(name for line, name in lines if line == number)
        problems.add(f"{path.name}:{number}", f"{shown(text)} looks like {what}, not like a name")
    start = 1 if lines and lines[0][1] == BACKGROUND else 0
    names = [name for _, name in lines[start:]]
    if not names:
        problems.add(f"{path.name}:1", "holds no class, expected one name a line")
    problems.raise_any("put one class name on each line, and nothing else")
    return LabelMap(tuple(names), tuple(range(start, start + len(names))))


def _no_names(lines: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Lines, by number, that look like something else than a name, and like what."""
    names = [name for _, name in lines]
    found = []
    for number, name in lines:
        what = next((what for form, what in _STRANGE if form.match(name)), None)
        if what is not None:
            found.append((number, what))
    if found or not lines:
        return found
    first = lines[0][0]
    if any(all(name.startswith(bullet) for name in names) for bullet in _BULLETS):
        return [(first, "a list in YAML or Markdown")]
    if len(names) > 1 and _HEADING.match(names[0]):
        return [(first, "the heading of a column")]
    whole = [(number, name) for number, name in lines if _WHOLE.fullmatch(name)]
    # Digits are classes, if they are all there in their order.
    if whole and [name for _, name in whole] != [str(i) for i in range(max(2, len(names)))]:
        return [(number, "a number") for number, _ in whole]
    numbers = [_NUMBERED.match(name) for name in names]
    if all(numbers):
        counted = [int(one[1]) for one in numbers if one]
        if counted in (list(range(len(names))), list(range(1, len(names) + 1))):
            return [(first, "a name with its number; the line is the number")]
    for separator in _SEPARATORS:
        counts = {name.count(separator) for name in names}
        if len(counts) == 1 and counts != {0} and (len(names) > 1 or max(counts) > 1):
            return [(first, "a row of a table (CSV)")]
        if len(names) == 1 and counts != {0}:
            return [(first, "several names on one line")]
    return found
