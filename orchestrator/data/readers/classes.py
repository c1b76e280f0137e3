"""Class names of the formats whose annotations do not list them: one name a line, or ``data.yaml``.

The line, counted from 0, is the number of the class. Where the first name is ``background``, as in
lists made for SSD, it is no class, and the numbers of the others begin at 1.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.findings import Problems
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.numbers import shown
from orchestrator.data.readers.paths import require_file
from orchestrator.data.readers.text_files import read_lines
from orchestrator.layouts.data_yaml import read_names
from orchestrator.layouts.files import is_file
from orchestrator.layouts.recognise import CLASSES_FILE, classes_beside

BACKGROUND = "background"


def class_file(kind: str, root: Path, given: str | Path | None) -> Path | None:
    """The file that names the classes of a data set.

    Args:
        kind: coco, voc, txt or yolo.
        root: of the data set.
        given: ``data.classes``.

    Returns:
        None where the annotations name them: in COCO, and in VOC without such a file.
    """
    if kind == "coco":
        return None
    if given is not None:
        return root / given
    if kind == "voc" and not is_file(root / CLASSES_FILE):
        return None
    return classes_beside(root) if kind == "yolo" else root / CLASSES_FILE


def read_classes(path: str | Path) -> LabelMap:
    """The classes of a list of names, or of the ``data.yaml`` of a YOLO data set.

    Raises:
        DataError: there is no such file, or it holds no names or one of them twice.
    """
    path = require_file(Path(path), what="list of classes", key="data.classes")
    if path.suffix in (".yaml", ".yml"):
        names = list(read_names(path))
        return LabelMap(tuple(names), tuple(range(len(names))))
    lines = read_lines(path)
    problems = Problems(str(path))
    seen: dict[str, int] = {}
    for number, name in lines:
        first = seen.setdefault(name, number)
        if first != number:
            problems.add(
                f"{path.name}:{number}", f"{shown(name)} is already the class of line {first}"
            )
    start = 1 if lines and lines[0][1] == BACKGROUND else 0
    names = [name for _, name in lines[start:]]
    if not names:
        problems.add(f"{path.name}:1", "holds no class, expected one name a line")
    problems.raise_any()
    return LabelMap(tuple(names), tuple(range(start, start + len(names))))
