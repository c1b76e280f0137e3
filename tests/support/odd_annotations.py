"""A small COCO file and an XML file, to be written with something odd in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.data.findings import ReadResult

#: Twelve boxes of 50x40 pixels in three images of 320x240, each an annotation's part.
BOXES = [[20.0 + 60 * (i % 4), 30.0 + 10 * (i % 3), 50.0, 40.0] for i in range(12)]
#: Reads a COCO file of three images with these annotations, and other sections.
Read = Callable[..., ReadResult]


def tree_of(entries: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 320, "height": 240} for i in range(3)
        ],
        "annotations": [
            {"id": i, "image_id": i % 3, "category_id": 1, "iscrowd": 0, "area": 2000.0, **entry}
            for i, entry in enumerate(entries)
        ],
        "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "plate"}],
        **more,
    }


def write_xml(folder: Path, objects: str, *, stem: str = "a", filename: str = "a.jpg") -> None:
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><filename>{filename}</filename><size><width>320</width><height>240</height>"
        f"<depth>3</depth></size>{objects}</annotation>"
    )
