from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.numbers import exact, plain
from orchestrator.data.readers.split import read_split
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.detections import Detections
from tests.support.data_cases import textured, write_image

XML = """<annotation><filename>a.png</filename><size><width>40</width><height>30</height></size>
<object><name>dog</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>11</xmax><ymax>10</ymax></bndbox>
</object></annotation>"""

#: Format to the annotation file and its text: one image, one dog at 1, 2 of 10 by 8 pixels.
ONE_DOG = {
    "coco": (
        "labels.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
                "annotations": [
                    {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 8], "area": 80}
                ],
                "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
            }
        ),
    ),
    "voc": ("Annotations/a.xml", XML),
    "txt": ("train.txt", "a.png 1,2,11,10,1\n"),
    "yolo": ("labels/a.txt", "1 0.15 0.2 0.25 0.26666666666666666666666666666666667\n"),
}


def write(folder: Path, kind: str) -> DataConfig:
    write_image(folder / "images" / "a.png", textured(30, 40, 0))
    name, text = ONE_DOG[kind]
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    if kind != "coco":
        (folder / "classes.txt").write_text("cat\ndog\n")
    location = name if "/" not in name else str(Path(name).parent)
    split = SplitConfig(images="images", annotations=location)
    return DataConfig(format=kind, root=str(folder), train=split, val=split)


@pytest.mark.parametrize("kind", ONE_DOG)
def test_every_format_gives_the_same_record(kind: str, tmp_path: Path) -> None:
    config = write(tmp_path, kind)
    data = read_split(config, config.train).dataset
    assert data.files == ("a.png",)
    assert (data.widths[0], data.heights[0]) == (40, 30)
    assert data.boxes_xywh.tolist() == [[1, 2, 10, 8]]
    assert data.label_map.names == ("cat", "dog")
    assert (data.labels.tolist(), data.areas.tolist(), data.crowd.tolist()) == ([1], [80], [False])


@pytest.mark.parametrize("kind", ONE_DOG)
def test_every_format_is_scored_alike(kind: str, tmp_path: Path) -> None:
    config = write(tmp_path, kind)
    data = read_split(config, config.val).dataset
    # The box itself, and one whose IoU with it is 8 * 8 / (10 * 8) = 0.8 exactly.
    for right, ap in ((11.0, 1.0), (9.0, 0.7)):
        found = Detections(
            images=data.image_ids,
            image_ids=data.image_ids,
            labels=np.array([1]),
            boxes=np.array([[1, 2, right, 10]], dtype=np.float32),
            scores=np.array([0.5], dtype=np.float32),
        )
        numbers = evaluate(data, found).numbers
        # Right at the thresholds 0.50, 0.55 ... 0.80: seven of ten. 80 square pixels are small.
        assert numbers["AP"] == pytest.approx(ap)
        assert numbers["APs"] == pytest.approx(ap)
        assert numbers["APm"] == -1


def test_labels_json_of_fiftyone(tmp_path: Path) -> None:
    write_image(tmp_path / "data" / "000000000001.jpg", textured(30, 40, 0))
    tree = {
        "info": {"year": "", "version": "", "description": "Exported from FiftyOne"},
        "licenses": [],
        "categories": [
            {"id": 0, "name": "cat", "supercategory": None},
            {"id": 1, "name": "dog", "supercategory": "animal"},
        ],
        "images": [
            {
                "id": 1,
                "file_name": "000000000001.jpg",
                "height": 30,
                "width": 40,
                "license": None,
                "coco_url": None,
            }
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1.5, 2.25, 10.0, 8.0],
                "segmentation": [],
                "area": 80.0,
                "iscrowd": 0,
                "supercategory": "animal",
            }
        ],
    }
    (tmp_path / "labels.json").write_text(json.dumps(tree))
    split = SplitConfig(images="data", annotations="labels.json")
    config = DataConfig(root=str(tmp_path), train=split, val=split)
    result = read_split(config, config.train)
    assert result.findings == ()
    assert result.dataset.labels.tolist() == [1]
    assert result.dataset.boxes_xywh.tolist() == [[1.5, 2.25, 10, 8]]


def test_too_many_images_left_out_end_the_run(tmp_path: Path) -> None:
    config = write(tmp_path, "txt")
    (tmp_path / "train.txt").write_text("a.png 1,2,11,10,1\ngone.png 1,2,3,4,0\n")
    with pytest.raises(
        DataError, match=r"1 of 2 images cannot be read, .*max_bad_fraction = 0\.01"
    ):
        read_split(config, config.train)
    patient = config.model_copy(update={"max_bad_fraction": 0.5})
    assert len(read_split(patient, patient.train).dataset) == 1


def test_classes_are_the_lines_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"cat\r\n\r\ntraffic light\r\n")
    assert read_classes(path).names == ("cat", "traffic light")
    assert read_classes(path).ids == (0, 1)
    path.write_text("background\ncat\ndog\n")
    assert read_classes(path).names == ("cat", "dog")
    assert read_classes(path).ids == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"classes\.txt:1: holds no class"),
        ("background\n", r"classes\.txt:1: holds no class"),
        ("cat\ndog\n\ncat\n", r"classes\.txt:4: 'cat' is already the class of line 1"),
        ("cat\0", r"classes\.txt:1: holds a null byte"),
    ],
)
def test_malformed_classes_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_missing_classes_name_the_key(tmp_path: Path) -> None:
    config = write(tmp_path, "yolo")
    (tmp_path / "classes.txt").rename(tmp_path / "names.txt")
    with pytest.raises(
        DataError, match=r"list of classes .* does not exist.*\ncorrect data\.class"
    ):
        read_split(config, config.train)
    named = config.model_copy(update={"classes": "names.txt"})
    assert read_split(named, named.train).dataset.label_map.names == ("cat", "dog")


def test_coco_names_its_classes_itself(tmp_path: Path) -> None:
    config = write(tmp_path, "coco")
    with pytest.raises(
        ValueError, match=r"data\.classes is 'names\.txt', but with data\.format coco"
    ):
        DataConfig(**{**config.model_dump(), "classes": "names.txt"})


@given(st.floats(-1e12, 1e12))
def test_decimals_are_read_back_as_the_same_float(value: float) -> None:
    assert float(plain(exact(value))) == value


def test_decimals_are_written_without_exponent() -> None:
    texts = [plain(exact(value)) for value in (1e-7, 100.0, 0.0, -0.0, 2.50, 1e22)]
    assert texts == ["0.0000001", "100", "0", "0", "2.5", "10000000000000000000000"]
