"""One small data set in the folders that annotation tools export, written by hand.

Images are 64 x 32, so that pixels are exact fractions of them. The sources of the forms are the
tools' own documents: docs.ultralytics.com/datasets/detect, docs.roboflow.com (exports), CVAT's
"YOLO" and "COCO" formats, labelImg's README, labelstud.io/guide/export, FiftyOne's
COCODetectionDataset and the development kit of Pascal VOC.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 32
NAMES = ("cell", "plate")
#: Name of each image: label and x, y, width, height of its boxes.
Truth = dict[str, list[tuple[int, int, int, int, int]]]


def truth(count: int, first: int = 0) -> Truth:
    """Images with a cell each, and every second with a plate."""
    return {
        f"p{index:03d}.jpg": [(0, 2 + index % 5, 3, 16, 12)]
        + ([(1, 34, 8 + index % 3, 20, 16)] if index % 2 else [])
        for index in range(first, first + count)
    }


TRAIN, VAL = truth(8), truth(4, first=8)


def draw(folder: Path, images: Truth) -> None:
    """Write the pictures: cells red, plates blue, on a noise that differs from one to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, boxes in images.items():
        noise = np.random.default_rng(int(name[1:4]))
        picture = noise.integers(60, 180, (HEIGHT, WIDTH, 3)).astype(np.uint8)
        for label, x, y, w, h in boxes:
            picture[y : y + h, x : x + w] = (20, 20, 230) if label == 0 else (230, 20, 20)
        assert cv2.imwrite(str(folder / name), picture)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def coco(path: Path, images: Truth, *, below: str = "") -> None:
    tree: dict[str, Any] = {
        "info": {},
        "images": [
            {"id": number, "file_name": f"{below}{name}", "width": WIDTH, "height": HEIGHT}
            for number, name in enumerate(images, start=1)
        ],
        "annotations": [],
        "categories": [{"id": label, "name": name} for label, name in enumerate(NAMES)],
    }
    for number, boxes in enumerate(images.values(), start=1):
        for label, *box in boxes:
            one = {"image_id": number, "category_id": label, "bbox": box, "iscrowd": 0}
            area = box[2] * box[3]
            tree["annotations"].append({"id": len(tree["annotations"]) + 1, "area": area, **one})
    write(path, json.dumps(tree))


def yolo(folder: Path, images: Truth) -> None:
    for name, boxes in images.items():
        lines = [
            f"{c} {(x + w / 2) / WIDTH} {(y + h / 2) / HEIGHT} {w / WIDTH} {h / HEIGHT}\n"
            for c, x, y, w, h in boxes
        ]
        write(folder / name.replace(".jpg", ".txt"), "".join(lines))


def voc(folder: Path, images: Truth) -> None:
    for name, boxes in images.items():
        objects = "".join(
            f"<object><name>{NAMES[c]}</name><difficult>0</difficult>"
            f"<part><name>head</name></part>"
            f"<bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>\n"
            for c, x, y, w, h in boxes
        )
        size = f"<width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>"
        text = f"<annotation><filename>{name}</filename><size>{size}</size>\n{objects}</annotation>"
        write(folder / name.replace(".jpg", ".xml"), text)


def roboflow_yolo(root: Path) -> None:
    for split, images in (("train", TRAIN), ("valid", VAL)):
        draw(root / split / "images", images)
        yolo(root / split / "labels", images)
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
    write(root / "data.yaml", text + "names: ['cell', 'plate']\n")


def roboflow_coco(root: Path) -> None:
    for split, images in (("train", TRAIN), ("valid", VAL)):
        draw(root / split, images)
        coco(root / split / "_annotations.coco.json", images)


def roboflow_voc(root: Path) -> None:
    for split, images in (("train", TRAIN), ("valid", VAL)):
        draw(root / split, images)
        voc(root / split, images)


def ultralytics(root: Path) -> None:
    for split, images in (("train", TRAIN), ("val", VAL)):
        draw(root / "images" / split, images)
        yolo(root / "labels" / split, images)
    folders = "path: somewhere/else\ntrain: images/train\nval: images/val\n"
    write(root / "dataset.yaml", folders + "names:\n  0: cell\n  1: plate\n")


def ultralytics_lists(root: Path) -> None:
    draw(root / "images", TRAIN | VAL)
    yolo(root / "labels", TRAIN | VAL)
    for split, images in (("train", TRAIN), ("val", VAL)):
        write(root / f"{split}.txt", "".join(f"./images/{name}\n" for name in images))
    write(root / "my.yaml", "train: train.txt\nval: val.txt\nnames: [cell, plate]\n")


def labels_beside(root: Path) -> None:
    for split, images in (("train", TRAIN), ("valid", VAL)):
        draw(root / split, images)
        yolo(root / split, images)
        write(root / split / "_darknet.labels", "cell\nplate\n")


def labelimg(root: Path) -> None:
    draw(root, TRAIN | VAL)
    yolo(root, TRAIN | VAL)
    write(root / "classes.txt", "cell\nplate\n")


def labelimg_two_folders(root: Path) -> None:
    draw(root / "images", TRAIN | VAL)
    yolo(root / "labels", TRAIN | VAL)
    write(root / "labels" / "classes.txt", "cell\nplate\n")


def cvat_yolo(root: Path) -> None:
    for split, images in (("train", TRAIN), ("valid", VAL)):
        folder = f"obj_{split}_data"
        draw(root / folder, images)
        yolo(root / folder, images)
        write(root / f"{split}.txt", "".join(f"data/{folder}/{name}\n" for name in images))
    write(root / "obj.names", "cell\nplate\n")
    lists = "train = data/train.txt\nvalid = data/valid.txt\n"
    write(root / "obj.data", f"classes = 2\n{lists}names = data/obj.names\nbackup = backup/\n")


def coco_2017(root: Path) -> None:
    for split, images in (("train2017", TRAIN), ("val2017", VAL)):
        draw(root / split, images)
        coco(root / "annotations" / f"instances_{split}.json", images)


def voc_published(root: Path) -> None:
    draw(root / "JPEGImages", TRAIN | VAL)
    voc(root / "Annotations", TRAIN | VAL)
    sets = {"train": TRAIN, "val": VAL, "trainval": TRAIN | VAL}
    for split, images in sets.items():
        stems = "".join(f"{name[:-4]}\n" for name in images)
        write(root / "ImageSets" / "Main" / f"{split}.txt", stems)
    write(root / "ImageSets" / "Main" / "cell_train.txt", "p000  1\n")


def cvat_coco(root: Path) -> None:
    draw(root / "images" / "default", TRAIN | VAL)
    coco(root / "annotations" / "instances_default.json", TRAIN | VAL)


def label_studio_coco(root: Path) -> None:
    draw(root / "images", TRAIN | VAL)
    coco(root / "result.json", TRAIN | VAL, below="images/")


def label_studio_yolo(root: Path) -> None:
    draw(root / "images", TRAIN | VAL)
    yolo(root / "labels", TRAIN | VAL)
    write(root / "classes.txt", "cell\nplate\n")
    write(root / "notes.json", "{}")


def fiftyone(root: Path) -> None:
    draw(root / "data", TRAIN | VAL)
    coco(root / "labels.json", TRAIN | VAL)


def voc_unsplit(root: Path) -> None:
    draw(root / "images", TRAIN | VAL)
    voc(root / "annotations", TRAIN | VAL)


#: Title and writer of the layouts that come in two parts, and of those that do not.
SPLIT: dict[str, Callable[[Path], None]] = {
    "Roboflow's YOLO with data.yaml": roboflow_yolo,
    "Roboflow's COCO": roboflow_coco,
    "Pascal VOC, XML beside the images": roboflow_voc,
    "YOLO with dataset.yaml": ultralytics,
    "YOLO with my.yaml": ultralytics_lists,
    "CVAT's YOLO 1.1": cvat_yolo,
    "YOLO, labels beside the images": labels_beside,
    "COCO": coco_2017,
    "Pascal VOC": voc_published,
}
UNSPLIT: dict[str, Callable[[Path], None]] = {
    "CVAT's COCO": cvat_coco,
    "Label Studio's COCO": label_studio_coco,
    "Label Studio's YOLO": label_studio_yolo,
    "YOLO": labelimg_two_folders,
    "YOLO, labels beside the images": labelimg,
    "FiftyOne's COCO": fiftyone,
    "Pascal VOC": voc_unsplit,
}


EXPERIMENT = """
name: small
detector: {name: ssd}
data: %s
train:
  epochs: 2
  batch_size: 2
  optimizer: {name: adamw, lr: 0.001}
  schedule: {name: constant}
"""


def experiment_on(folder: Path, data: str) -> Path:
    """A small experiment in ``folder`` whose section of data is ``data``."""
    file = folder / "e.yaml"
    file.write_text(EXPERIMENT % data)
    return file
