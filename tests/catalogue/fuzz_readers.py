"""Targets of ``make fuzz`` beyond single annotation files: what a whole data set is read through.

Layouts and their ``data.yaml``, label files of other tasks, class maps, mixtures of sources with
repeat factors and tiles, addresses of buckets, results files and predictions.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cases_coco import TREE, build_coco
from cases_layouts import yolo_folder
from cases_lines import CLASSES
from cases_yaml import FILE, YAML
from hypothesis import strategies as st

from orchestrator.config.resolve import load_experiment
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.split import read_splits
from orchestrator.data.readers.yolo import read_yolo
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.data.tiling import Tiles, tiled
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.results import read_results
from orchestrator.evaluation.tile_merging import merge_tiles
from orchestrator.predict.identify import identify
from orchestrator.predict.inputs import list_pictures
from orchestrator.predict.seed_form import read_seed_json
from orchestrator.storage.address import Place, below, file_system_path

OBJ_DATA = "classes = 2\ntrain = data/train.txt\nvalid = data/list.txt\nnames = data/obj.names\n"
OUTLINES = "1 0.1 0.1 0.4 0.1 0.4 0.5 0.1 0.5\n0 0.1 0.1 0.2 0.1 0.2 0.2\n1 0.5 0.5 0.2 0.2\n"
CLASS_MAP = '{"names": {"0": "cat", "1": "dog"}, "categories": [{"id": 0, "name": "cat"}]}'
RESULTS = json.dumps(
    [
        {"image_id": 5, "category_id": 7, "bbox": [1, 2, 10, 8], "score": 0.9},
        {"image_id": 6, "category_id": 3, "bbox": [1.5, 2, 10, 8], "score": 1e-3},
    ],
    indent=1,
)
PREDICTIONS = json.dumps(
    {
        "images/a.png": {
            "height": 30,
            "width": 40,
            "predictions": [
                {
                    "bbox": {"x_min": 1, "y_min": 2, "width": 10, "height": 8},
                    "class": {"label": 0, "category_id": 7, "name": "seven"},
                    "score": 0.9,
                }
            ],
        }
    },
    indent=1,
)
INPUTS = "images/train/a.png\n./images/*/b.png\n\nimages/train\n"


def build_task(task: Any, data: bytes, folder: Path) -> partial[Any]:
    """A YOLO data set whose labels were written for a task, of which ``a`` has this label file."""
    yolo_folder(folder)
    (folder / "labels" / "train" / "a.txt").write_bytes(data)
    rules = ReadRules(task=task)
    places = folder / "images" / "train", folder / "labels" / "train"
    return partial(read_yolo, *places, CLASSES, rules)


def build_class_map(data: bytes, folder: Path) -> partial[Any]:
    """Classes in JSON."""
    (folder / "classes.json").write_bytes(data)
    return partial(read_classes, folder / "classes.json")


def build_results(data: bytes, folder: Path) -> partial[Any]:
    """Results of a data set of two images."""
    dataset = build_coco(TREE, folder)().dataset
    (folder / "results.json").write_bytes(data)
    return partial(read_results, folder / "results.json", dataset)


def build_predictions(data: bytes, folder: Path) -> partial[Any]:
    """What ``predict`` writes, found among images."""
    file = folder / "predictions.json"
    file.write_bytes(data)
    return partial(_read_predictions, file)


def build_inputs(data: bytes, folder: Path) -> partial[Any]:
    """A list of pictures to predict."""
    yolo_folder(folder)
    (folder / "inputs.txt").write_bytes(data)
    return partial(list_pictures, [str(folder / "inputs.txt")])


def build_bucket(data: bytes, folder: Path) -> partial[Any]:
    """An experiment whose images lie at an address; no store is asked."""
    address = data.decode("utf-8", "replace")
    (folder / FILE).write_text(YAML)
    return partial(_read_address, folder / FILE, address)


def _read_predictions(file: Path) -> None:
    found, label_map = read_seed_json(file)
    assert all(0 <= label < len(label_map) for one in found for label in one.labels)
    position = identify([one.key for one in found], ["images/a.png", "a.png"], source="x").position
    assert set(position.values()) <= {0, 1}


def _read_address(file: Path, address: str) -> None:
    place = Place.of(address)
    if place.is_remote and place.bucket:
        assert Place.of(below(address, "a")).bucket == place.bucket
    override = json.dumps(address)
    load_experiment(
        file,
        (f"data.train.images={override}", f"data.sources=[{{images: {override}, annotations: x}}]"),
    )
    file_system_path(address)


#: Mostly names that fit.
_MINE = st.sampled_from(["seven", "three"] * 8 + ["Seven", "seven ", "", "other"])
_WEIGHTS = st.sampled_from([1.0, 0.3, 2.5, 1e3, 1e-3, 1e-300])
#: Boxes of each of three images: corner, sides, class, crowd.
_BOXES = st.lists(
    st.tuples(
        *(st.integers(-30, 60) for _ in range(2)),
        *(st.integers(1, 90) for _ in range(2)),
        st.sampled_from([3, 7]),
        st.booleans(),
    ),
    max_size=4,
)
MIXTURES = st.tuples(
    st.dictionaries(_MINE, st.none() | _MINE, max_size=2),
    _WEIGHTS,
    _WEIGHTS,
    st.none() | st.sampled_from([1e-9, 0.01, 0.5, 1.0]),
    st.none() | st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 60)),
    st.lists(_BOXES, min_size=1, max_size=2),
    st.lists(_BOXES, min_size=1, max_size=2),
    st.booleans(),
)


def read_mixture(drawn: tuple[Any, ...], folder: Path) -> None:
    """Two sources by a class map, with weights, repeat factors and tiles, down to a batch."""
    class_map, weight, other, threshold, tiles, main, source, keep_empty = drawn
    for name, boxes in (("main", main), ("other", source)):
        (folder / name).mkdir()
        build_coco(_tree(boxes), folder / name)
    data = {
        "root": str(folder),
        "train": {"images": "main/images", "annotations": "main/instances.json"},
        "val": {"images": "main/images", "annotations": "main/instances.json"},
        "weight": weight,
        "repeat_threshold": threshold,
        "keep_empty": keep_empty,
        "sources": [
            {
                "images": "other/images",
                "annotations": "other/instances.json",
                "class_map": class_map,
                "weight": other,
            }
        ],
    }
    if tiles is not None:
        height, width, overlap = tiles
        data["tiles"] = {"size": [height, width], "overlap": overlap}
    file = folder / FILE
    start, _, rest = YAML.partition("data:\n")
    rest = rest[rest.index("train:\n  epochs") :]
    file.write_text(f"{start}data: {json.dumps(data)}\n{rest}")
    config = load_experiment(file).experiment.data
    train, val = (read.dataset for read in read_splits(config))
    plan = BatchPlan.from_config(
        config, train, val, seed=1, epochs=2, batch_size=1, workers=1, input_size=(32, 40)
    )
    steps = plan.schedule.total_steps
    for step in {0, steps - 1}:
        assert (plan.schedule.samples(step) == plan.schedule.rank_samples(step, 0, 1)).all()
    batch = plan.train_batch(steps - 1, 0, 1)
    assert not batch.replaced
    assert np.isfinite(batch.boxes).all()
    assert keep_empty or batch.valid.any() or tiles is not None


def read_tiles(drawn: tuple[Any, ...], folder: Path) -> None:
    """Tiles of any size; their boxes lie inside them, and perfect ones become the whole again."""
    (height, width, overlap), boxes = drawn
    dataset: Dataset = build_coco(_tree(boxes), folder)().dataset
    tiles = Tiles((height, width), min(overlap, height - 1, width - 1), inside=1e-9)
    cut = tiled(dataset, tiles)
    assert cut.tiling is not None
    sizes = np.stack([cut.widths, cut.heights], axis=1).repeat(np.diff(cut.offsets), axis=0)
    assert (cut.boxes_xywh[:, 2:] > 0).all()
    assert (cut.boxes_xywh[:, :2] >= 0).all()
    assert (cut.boxes_xywh[:, :2] + cut.boxes_xywh[:, 2:] <= sizes + 1e-9).all()
    xyxy = cut.boxes_xywh.copy()
    xyxy[:, 2:] += xyxy[:, :2]
    of_tile = np.arange(len(cut)).repeat(np.diff(cut.offsets))
    scores = np.full(len(xyxy), 0.9, np.float32)
    found = Detections(cut.image_ids, of_tile, cut.labels, xyxy.astype(np.float32), scores)
    merged = merge_tiles(found, cut.tiling, iou=0.5)
    # Every class that an image shows is still found there, and nothing else.
    pairs = {
        (int(dataset.image_ids[i]), int(label))
        for i in range(len(dataset))
        for label in dataset.training_boxes(i, with_crowd=True)[1]
    }
    assert set(zip(merged.image_ids.tolist(), merged.labels.tolist(), strict=True)) == pairs


TILED = st.tuples(
    st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 49)),
    st.lists(_BOXES, min_size=1, max_size=2),
)


def _tree(images: list[list[tuple[int, int, int, int, int, bool]]]) -> dict[str, Any]:
    """A COCO tree of images of 40 by 30 pixels with these boxes."""
    tree: dict[str, Any] = {"images": [], "annotations": [], "categories": TREE["categories"]}
    for number, boxes in enumerate(images):
        entry = {"id": number, "file_name": f"{'ab'[number]}.png", "width": 40, "height": 30}
        tree["images"].append(entry)
        for *box, category, crowd in boxes:
            one = {"id": len(tree["annotations"]), "image_id": number, "category_id": category}
            area = {"area": box[2] * box[3], "iscrowd": int(crowd)}
            tree["annotations"].append(one | {"bbox": box} | area)
    return tree
