"""Writers of every annotation format, for the readers of this folder to read back.

Coordinates are written with as many digits as it takes to get the same float64 again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.numbers import EXACT, exact, plain
from orchestrator.data.readers.text_files import quoted
from orchestrator.errors import DataError
from orchestrator.layouts.data_yaml import labels_beside
from orchestrator.layouts.layout import Place

#: Of a YOLO fraction: times the width of any image, the error stays below the pixel quantum.
_FRACTION_QUANTUM = Decimal("1e-40")
_DIVISION = Context(prec=100)


def usual_place(root: Path, kind: str, split: str, *, own_folder: bool) -> Place:
    """Where a split of format ``kind`` is written.

    Args:
        root: of the data set.
        kind: coco, voc, txt or yolo.
        split: its name.
        own_folder: whether the split has a folder of images for itself.
    """
    images = root / ("JPEGImages" if kind == "voc" else "images")
    annotations = {
        "coco": Path("annotations", f"instances_{split}.json"),
        "voc": Path("ImageSets", "Main", f"{split}.txt"),
    }.get(kind, Path(f"{split}.txt"))
    return Place(images / split if own_folder else images, root / annotations)


def write_coco(data: Dataset, place: Place) -> None:
    """One ``instances`` file; annotation ids count from 1."""
    rows = zip(
        data.boxes_xywh.tolist(),
        data.labels.tolist(),
        data.areas.tolist(),
        data.crowd.tolist(),
        strict=True,
    )
    image_of = (
        image_id
        for index, image_id in enumerate(data.image_ids.tolist())
        for _ in range(*data.boxes_of(index).indices(len(data.labels)))
    )
    ids = data.label_map.ids
    tree = {
        "images": [
            {"id": image_id, "file_name": file, "width": width, "height": height}
            for image_id, file, width, height in zip(
                data.image_ids.tolist(),
                data.files,
                data.widths.tolist(),
                data.heights.tolist(),
                strict=True,
            )
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": ids[label],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for number, (image_id, (box, label, area, crowd)) in enumerate(
                zip(image_of, rows, strict=True), start=1
            )
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip(ids, data.label_map.names, strict=True)
        ],
    }
    _write(place.annotations, json.dumps(tree, ensure_ascii=False))


def write_voc(data: Dataset, place: Place) -> None:
    """One XML file an image below ``Annotations``, and an image set that lists them."""
    root = next(up.parent for up in place.annotations.parents if up.name == "ImageSets")
    # A split with images of its own has annotations of its own, too.
    below = place.images.relative_to(root / "JPEGImages")
    stems = [str(below / _stem(file)) for file in data.files]
    _refuse_equal(stems, data.files, "XML file")
    for index, stem in enumerate(stems):
        _write(root / "Annotations" / f"{stem}.xml", _xml(data, index))
    _write(place.annotations, "".join(f"{stem}\n" for stem in stems))


def _xml(data: Dataset, index: int) -> str:
    one = Decimal(1)
    lines = [
        "<annotation>",
        f"  <filename>{escape(data.files[index])}</filename>",
        "  <size>",
        f"    <width>{data.widths[index]}</width>",
        f"    <height>{data.heights[index]}</height>",
        "    <depth>3</depth>",
        "  </size>",
    ]
    for row in range(*data.boxes_of(index).indices(len(data.labels))):
        x, y, w, h = (exact(float(value)) for value in data.boxes_xywh[row])
        corners = {
            "xmin": EXACT.add(x, one),
            "ymin": EXACT.add(y, one),
            "xmax": EXACT.add(x, w),
            "ymax": EXACT.add(y, h),
        }
        lines += [
            "  <object>",
            f"    <name>{escape(data.label_map.names[data.labels[row]])}</name>",
            f"    <difficult>{int(data.crowd[row])}</difficult>",
            "    <bndbox>",
            *(f"      <{tag}>{plain(value)}</{tag}>" for tag, value in corners.items()),
            "    </bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def write_txt(data: Dataset, place: Place) -> None:
    """One line an image."""
    lines = []
    for index, file in enumerate(data.files):
        fields = [quoted(file)]
        for row in range(*data.boxes_of(index).indices(len(data.labels))):
            x, y, w, h = (exact(float(value)) for value in data.boxes_xywh[row])
            corners = (x, y, EXACT.add(x, w), EXACT.add(y, h))
            crowd = ",1" if data.crowd[row] else ""
            fields.append(f"{','.join(map(plain, corners))},{data.labels[row]}{crowd}")
        lines.append(" ".join(fields) + "\n")
    _write(place.annotations, "".join(lines))


def write_yolo(data: Dataset, place: Place) -> None:
    """One text file an image that has boxes, and a list of all images.

    Raises:
        DataError: the data set has crowds, for which there is no place in a label file.
    """
    if data.crowd.any():
        raise DataError(
            f"{data.root}: {int(data.crowd.sum())} crowd (or difficult) boxes, which YOLO label "
            "files cannot hold\nleave them out with --drop-crowd, or choose another format"
        )
    labels = labels_beside(place.images)
    names = [f"{_stem(file)}.txt" for file in data.files]
    _refuse_equal(names, data.files, "label file")
    for index, name in enumerate(names):
        if lines := _yolo_lines(data, index):
            _write(labels / name, "".join(lines))
    folder = os.path.relpath(place.images, place.annotations.parent)
    _write(place.annotations, "".join(f"{PurePosixPath(folder, file)}\n" for file in data.files))


def _yolo_lines(data: Dataset, index: int) -> list[str]:
    width, height = Decimal(int(data.widths[index])), Decimal(int(data.heights[index]))
    half = Decimal("0.5")
    lines = []
    for row in range(*data.boxes_of(index).indices(len(data.labels))):
        x, y, w, h = (exact(float(value)) for value in data.boxes_xywh[row])
        centre_x = EXACT.add(x, EXACT.multiply(w, half))
        centre_y = EXACT.add(y, EXACT.multiply(h, half))
        fractions = (
            _DIVISION.divide(value, side).quantize(_FRACTION_QUANTUM, ROUND_HALF_EVEN, EXACT)
            for value, side in ((centre_x, width), (centre_y, height), (w, width), (h, height))
        )
        lines.append(f"{data.labels[row]} {' '.join(map(plain, fractions))}\n")
    return lines


WRITERS: dict[str, Callable[[Dataset, Place], None]] = {
    "coco": write_coco,
    "voc": write_voc,
    "txt": write_txt,
    "yolo": write_yolo,
}


def _stem(file: str) -> str:
    return str(PurePosixPath(os.path.normpath(file)).with_suffix(""))


def _refuse_equal(names: list[str], files: Sequence[str], what: str) -> None:
    """Two images must not share a file of annotations."""
    seen: dict[str, str] = {}
    for name, file in zip(names, files, strict=True):
        other = seen.setdefault(name, file)
        if other != file:
            raise DataError(
                f"{file} and {other} would share the {what} {name}\n"
                "rename one of them, or choose another format"
            )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
