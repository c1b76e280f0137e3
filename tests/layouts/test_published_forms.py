"""One data set as it is published in three forms: what is learnt from is the same to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from orchestrator.config.resolve import load_experiment
from orchestrator.data.batch import Batch
from orchestrator.data.demo.digits import Recipe, build_digits
from orchestrator.layouts.recognise import find_layout
from orchestrator.runs.plan import make_plan
from tests.support import layout_folders
from tests.support.layout_folders import experiment_on


def trees(root: Path) -> dict[str, dict[str, Any]]:
    """The COCO files of a digits set, by split, and their boxes by image."""
    found = {}
    for split in ("train", "val"):
        tree = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        names = {one["id"]: one["name"] for one in tree["categories"]}
        for image in tree["images"]:
            image["boxes"] = [
                (names[one["category_id"]], *one["bbox"])
                for one in tree["annotations"]
                if one["image_id"] == image["id"]
            ]
        found[split] = tree
    return found


def as_voc(source: Path, root: Path) -> None:
    """As Pascal VOC is published: pixels from 1 with both ends included, no list of classes."""
    shutil.copytree(source / "images", root / "JPEGImages")
    for split, tree in trees(source).items():
        stems = []
        for image in tree["images"]:
            objects = "".join(
                f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated>"
                f"<difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for name, x, y, w, h in image["boxes"]
            )
            size = f"<width>{image['width']}</width><height>{image['height']}</height>"
            text = (
                f"<annotation><folder>JPEGImages</folder><filename>{image['file_name']}</filename>"
                f"<size>{size}<depth>3</depth></size>{objects}</annotation>"
            )
            stems.append(Path(image["file_name"]).stem)
            layout_folders.write(root / "Annotations" / f"{stems[-1]}.xml", text)
        lines = "".join(f"{stem}\n" for stem in stems)
        layout_folders.write(root / "ImageSets" / "Main" / f"{split}.txt", lines)


def as_roboflow(source: Path, root: Path) -> None:
    """As Roboflow exports COCO: a category above all, ids from 0, names with a digest in them."""
    for split, tree in trees(source).items():
        folder = root / {"train": "train", "val": "valid"}[split]
        folder.mkdir(parents=True)
        names = sorted(one["name"] for one in tree["categories"])
        categories = [{"id": 0, "name": "digits", "supercategory": "none"}]
        categories += [
            {"id": number, "name": name, "supercategory": "digits"}
            for number, name in enumerate(names, start=1)
        ]
        images, annotations = [], []
        for number, image in enumerate(tree["images"]):
            stem, sha = Path(image["file_name"]).stem, hashlib.sha256(image["file_name"].encode())
            name = f"{stem}_jpg.rf.{sha.hexdigest()[:32]}.jpg"
            shutil.copy(source / "images" / image["file_name"], folder / name)
            size = {"width": image["width"], "height": image["height"]}
            images.append({"id": number, "license": 1, "file_name": name, **size})
            annotations += [
                {
                    "id": len(annotations) + place,
                    "image_id": number,
                    "category_id": names.index(label) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": [],
                    "iscrowd": 0,
                }
                for place, (label, *box) in enumerate(image["boxes"])
            ]
        content = {"categories": categories, "images": images, "annotations": annotations}
        layout_folders.write(folder / "_annotations.coco.json", json.dumps(content))


def bits(batch: Batch) -> list[bytes]:
    """What a network learns from: pixels, boxes, labels, and which of them are there."""
    return [array.tobytes() for array in (batch.images, batch.boxes, batch.labels, batch.valid)]


def test_one_data_set_as_published_in_three_forms_is_the_same_to_the_bit(tmp_path: Path) -> None:
    """Without files of classes, wherever ids begin: so training has nothing to tell them by."""
    build_digits(tmp_path / "coco", Recipe(train=9, val=3, seed=3))
    as_voc(tmp_path / "coco", tmp_path / "voc")
    as_roboflow(tmp_path / "coco", tmp_path / "roboflow")
    titles, read, batches = [], [], []
    for form in ("coco", "voc", "roboflow"):
        titles.append(find_layout(tmp_path / form).title)
        resolved = load_experiment(experiment_on(tmp_path, f"{{root: {tmp_path / form}}}"))
        plan = make_plan(resolved, tmp_path / f"run-{form}", threads=1)
        splits = plan.splits.values()
        read.append(
            [
                (
                    data.label_map.names,
                    [Path(file).stem.split("_jpg.rf.")[0] for file in data.files],
                    data.boxes_xywh.tolist(),
                    data.labels.tolist(),
                    data.offsets.tolist(),
                )
                for data in splits
            ]
        )
        steps = [bits(plan.batches.train_batch(step, 0, 1)) for step in range(6)]
        batches.append([*steps, bits(plan.batches.eval_batch_at(0, 0, 1))])
    assert titles == ["COCO", "Pascal VOC", "Roboflow's COCO"]
    assert read[0] == read[1] == read[2]
    assert sum(len(part[2]) for part in read[0]) > 50
    assert batches[0] == batches[1] == batches[2]
