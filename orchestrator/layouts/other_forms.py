"""What lies in a folder that has no layout this program reads, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from orchestrator.errors import DataError
from orchestrator.layouts.files import (
    IMAGE_SUFFIXES,
    first_image,
    first_lines,
    is_file,
    is_folder,
    is_hidden,
    visible,
)
from orchestrator.layouts.layout import SPLITS

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
#: So many files and folders are looked at.
_MOST = 2_000
#: So many of them are opened.
_MOST_OPENED = 50
_HEAD = 4_096
#: In the first line of a table of boxes.
_BOX_COLUMN = re.compile(r"x_?min|bbox", re.IGNORECASE)
_READ = "COCO, YOLO or Pascal VOC"


def refuse_own_forms(root: Path) -> None:
    """Say of the forms that tools keep for themselves which of their exports is read.

    Sources: docs.cvat.ai, "CVAT for image 1.1"; labelstud.io/guide/export, "JSON".

    Raises:
        DataError: CVAT's XML or Label Studio's JSON lies there.
    """
    path = root / "annotations.xml"
    if is_file(path) and "<annotations>" in " ".join(first_lines(path, 3)):
        raise DataError(
            f"{path}: CVAT's own XML, of which boxes are not read. Next: export the task as "
            "COCO 1.0 or YOLO 1.1, with images, and name that folder"
        )
    for path in visible(root, "*.json")[:10]:
        head = " ".join(first_lines(path))[:_HEAD]
        if head.startswith("[") and '"data"' in head and first_image(path) is None:
            raise DataError(
                f"{path}: looks like Label Studio's own JSON, of which boxes are not read. Next: "
                "export the project as COCO or YOLO, with images, and name that folder"
            )


def no_folder(path: Path) -> str:
    """What a path is that should be the folder of a data set."""
    if not is_file(path):
        return f"{path}: no such folder; give the folder of a data set, or an experiment"
    if path.suffix.lower() in _ARCHIVES:
        return f"{path}: is an archive. Next: unpack it, and name the folder that comes out of it"
    return (
        f"{path}: is a file. Next: name the folder of the data set, its data.yaml, one COCO file "
        "(.json), or an experiment (.yaml)"
    )


def found_instead(root: Path) -> str | None:
    """What a folder without a known layout holds, with the next step; None for nothing known.

    Sources: github.com/wkentaro/labelme (``shapes`` and ``imagePath``); Roboflow's exports
    (``_annotations.csv``, ``_annotations.createml.json``, ``.tfrecord``).
    """
    files = list(islice(_files(root), _MOST))
    if not files:
        empty = not _entries(root)
        return "the folder is empty. Next: name the one that holds the images" if empty else None
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in IMAGE_SUFFIXES]
    for path in others[:_MOST_OPENED]:
        form = _form(path)
        if form is not None:
            return (
                f"found {path.relative_to(root)}, {form}, which is not read. Next: export the data "
                f"set as {_READ}, with images, and name that folder"
            )
    if others:
        packed = [path for path in others if path.suffix.lower() in _ARCHIVES]
        if packed and not pictures:
            return f"found {packed[0].relative_to(root)}. Next: unpack it, and name its folder"
        return None
    classes = {path.parent.name.lower() for path in pictures}
    classes -= {root.name.lower(), "images", *SPLITS}
    more = " in folders, as for classification," if len(classes) > 1 else ""
    return (
        f"found images{more} and no boxes. Next: draw boxes with a labelling tool, such as CVAT or "
        f"Label Studio, and export them as {_READ}"
    )


def _files(root: Path) -> Iterator[Path]:
    """Of a folder and three levels below it, breadth first."""
    level = [root]
    for _ in range(4):
        below = []
        for folder in level:
            for path in _entries(folder):
                if is_hidden(path.name):
                    continue
                if is_folder(path):
                    below.append(path)
                elif is_file(path):
                    yield path
        level = below


def _entries(folder: Path) -> list[Path]:
    """Of a folder; none of one that is closed to us."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _form(path: Path) -> str | None:
    """The name of a form of annotations that is not read."""
    name = path.name.lower()
    if name.endswith(".createml.json"):
        return "boxes for Create ML"
    if path.suffix.lower() in (".tfrecord", ".tfrecords", ".record"):
        return "a TFRecord"
    if path.suffix.lower() == ".csv" and _BOX_COLUMN.search(" ".join(first_lines(path, 1))):
        return "a table of boxes"
    if path.suffix.lower() == ".json":
        head = " ".join(first_lines(path))
        if '"shapes"' in head and '"imagePath"' in head:
            return "LabelMe's JSON"
    return None
