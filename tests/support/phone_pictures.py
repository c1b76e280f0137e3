"""Pictures as phones store them, turned by a tag, with boxes drawn on them as they are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from orchestrator.config.schema import DataConfig, SplitConfig

#: A bright rectangle in the picture as displayed, of 60 by 40 pixels: x, y, width, height.
BOXES = [(6 + 4 * i, 5 + 2 * i, 18, 14) for i in range(6)]


def write_phone(folder: Path, tag: int, kind: str = "yolo") -> DataConfig:
    """Pictures that are tagged, with boxes drawn on them as they are displayed."""
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[tag]
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    (folder / "classes.txt").write_text("cell\n")
    exif = Image.Exif()
    exif[0x0112] = tag
    tree: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    listed: list[str] = []
    for i, (x, y, w, h) in enumerate(BOXES):
        pixels = np.random.default_rng(i).integers(60, 90, (40, 60, 3)).astype(np.uint8)
        pixels[y : y + h, x : x + w] = 240
        shown = Image.fromarray(pixels)
        stored = shown if undo is None else shown.transpose(undo)
        stored.save(folder / "images" / f"{i}.jpg", quality=95, exif=exif)
        values = (x + w / 2) / 60, (y + h / 2) / 40, w / 60, h / 40
        # Twice, so that there is something to compare.
        lines = [f"0 {' '.join(map(str, values))}", "0 0.5 0.5 0.02 0.02"]
        (folder / "labels" / f"{i}.txt").write_text("\n".join(lines))
        listed.append(f"{i}.jpg {x},{y},{x + w},{y + h},0 29,19,31,21,0\n")
        tree["images"].append({"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40})
        for box in ([x, y, w, h], [29, 19, 2, 2]):
            number = len(tree["annotations"])
            tree["annotations"].append(
                {
                    "id": number,
                    "image_id": i,
                    "category_id": 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                }
            )
    places = {"yolo": "labels", "coco": "a.json", "txt": "listed.txt"}
    if kind == "coco":
        (folder / "a.json").write_text(json.dumps(tree))
    if kind == "txt":
        (folder / "listed.txt").write_text("".join(listed))
    split = SplitConfig(images="images", annotations=places[kind])
    return DataConfig(format=kind, root=str(folder), train=split, val=split)
