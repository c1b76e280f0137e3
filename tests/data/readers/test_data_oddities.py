"""What labelling tools write beside and instead of boxes: read right, or refused with words."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.config.resolve import load_experiment
from orchestrator.config.schema import DataConfig, SplitConfig
from orchestrator.data.doctor.image_notes import alike_classes
from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.convert import convert
from orchestrator.data.readers.lookalikes import Lookalikes
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.split import read_split, read_splits
from orchestrator.data.readers.txt import read_txt
from orchestrator.data.readers.voc import read_voc
from orchestrator.data.readers.yolo import read_yolo
from orchestrator.data.shards.writer import put_shard
from orchestrator.errors import ConfigError, DataError, SecurityError
from orchestrator.evaluation.coco import evaluate
from orchestrator.evaluation.results import Results
from orchestrator.storage.folders import open_folder
from tests.support.data_cases import textured, write_image
from tests.support.odd_annotations import BOXES, Read, tree_of, write_xml

CLASSES = LabelMap(("cat", "dog"), (0, 1))
CASES = Path(__file__).parents[4] / "shared" / "cases"


def kinds(result: ReadResult) -> dict[str, int]:
    return {finding.kind: finding.count for finding in result.findings}


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("car", "Car"), True),
        (("traffic light", "traffic_light "), True),
        (("café", "cafe\u0301"), True),
        (("car", "c\u200bar"), True),
        (("car", "cart"), False),
        (("c", "c++"), False),
    ],
)
def test_classes_that_look_alike_are_said(read: Read, names: tuple[str, str], alike: bool) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(names, start=1)]
    data = read([{"bbox": BOXES[0]}], categories=categories).dataset
    assert data.label_map.names == names
    found = alike_classes(data)
    assert (found is not None) == alike
    if found is not None:
        # As escapes, since they look the same.
        assert found.examples == (f"{names[0]!a} and {names[1]!a}",)


@pytest.mark.parametrize("degrees", [30.0, 90.0, -45, 350])
def test_a_turned_box_becomes_the_box_around_it(read: Read, degrees: float) -> None:
    result = read([{"bbox": [100, 80, 60, 20], "attributes": {"rotation": degrees}}])
    # The corners of the rectangle, turned about its centre at (130, 90).
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[x, y] for x in (-30, 30) for y in (-10, 10)]) @ turn.T + (130, 90)
    low, high = corners.min(axis=0), corners.max(axis=0)
    expected = [*low.tolist(), *(high - low).tolist()]
    assert result.dataset.boxes_xywh[0].tolist() == pytest.approx(expected)
    assert kinds(result)["rotated_box"] == 1


def test_a_box_that_is_not_turned_keeps_its_bits(read: Read) -> None:
    box = [100.1, 80.3, 60.7, 20.9]
    for degrees in (0, 0.0, 180, 360.0):
        result = read([{"bbox": box, "attributes": {"rotation": degrees}}])
        assert result.dataset.boxes_xywh.tolist() == [box]
        assert "rotated_box" not in kinds(result)


def test_a_turned_box_in_xml(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg", textured(240, 320, 0))
    write_xml(
        tmp_path,
        "<object><name>cat</name><bndbox><xmin>101</xmin><ymin>81</ymin><xmax>160</xmax>"
        "<ymax>100</ymax></bndbox><attributes><attribute><name>rotation</name><value>90.0</value>"
        "</attribute></attributes></object>",
    )
    result = read_voc(tmp_path / "images", tmp_path / "Annotations", CLASSES)
    # 60 by 20 pixels around (130, 90), a quarter turn.
    assert result.dataset.boxes_xywh[0].tolist() == pytest.approx([120, 60, 20, 60])
    assert kinds(result) == {"rotated_box": 1}


def test_boxes_that_are_there_twice_are_dropped_and_perfect_results_perfect(read: Read) -> None:
    once = read([{"bbox": box} for box in BOXES]).dataset
    twice = read([{"bbox": box} for box in [*BOXES, *BOXES]])
    assert kinds(twice) == {"equal_box": 12}
    assert twice.dataset.boxes_xywh.tolist() == once.boxes_xywh.tolist()
    found = Results(
        images=once.image_ids,
        image_ids=np.repeat(once.image_ids, np.diff(once.offsets)),
        labels=once.labels,
        boxes_xywh=once.boxes_xywh,
        scores=np.full(12, 0.9),
    )
    assert evaluate(twice.dataset, found).numbers["AP"] == 1.0


def test_one_equal_box_among_hundreds_is_kept_and_said(read: Read) -> None:
    many = [[1.0 + i % 100, 2.0 + i // 100, 50.0, 40.0] for i in range(300)]
    result = read([{"bbox": box} for box in [*many, many[0]]])
    (finding,) = result.findings
    assert (finding.kind, finding.count) == ("equal_box", 1)
    assert finding.action.startswith("kept")
    assert len(result.dataset.labels) == 301


def test_the_same_place_as_another_class_or_crowd_is_no_equal_box(read: Read) -> None:
    box = {"bbox": [10, 10, 50, 40], "image_id": 0}
    result = read([box, {**box, "category_id": 2}, {**box, "iscrowd": 1}])
    assert "equal_box" not in kinds(result)
    assert len(result.dataset.labels) == 3


def test_areas_that_cannot_be_right(read: Read) -> None:
    entries = [{"bbox": box, "area": 1500.0 + 37 * i} for i, box in enumerate(BOXES)]
    entries[0]["area"], entries[1]["area"] = 0, 99_000
    result = read(entries)
    assert kinds(result) == {"zero_area": 1, "area_above_box": 1}
    expected = sorted([2000.0, 2000.0, *(1500.0 + 37 * i for i in range(2, 12))])
    assert sorted(result.dataset.areas.tolist()) == expected
    # A quarter of every box: annotated on pictures of half the size.
    small = read([{"bbox": box, "area": 500.0} for box in BOXES])
    assert kinds(small) == {"area_of_another_scale": 12}
    assert set(small.dataset.areas.tolist()) == {2000.0}
    # Outlines may fill a quarter of their boxes.
    outline = {"segmentation": [[1, 1, 2, 2, 3, 1]], "area": 500.0}
    assert kinds(read([{"bbox": box, **outline} for box in BOXES])) == {}


def test_ignored_regions_are_neither_learnt_nor_scored(read: Read, tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [{"bbox": box} for box in BOXES]
    entries += [{"bbox": [200, 150, 90, 80], "ignore": 1, "image_id": i} for i in range(3)]
    result = read(entries)
    data = result.dataset
    assert kinds(result)["ignored_region"] == 3
    assert sum(len(data.training_boxes(i)[0]) for i in range(3)) == 12
    real = ~data.crowd
    image_ids = np.repeat(data.image_ids, np.diff(data.offsets))
    found = Results(
        data.image_ids, image_ids[real], data.labels[real], data.boxes_xywh[real], np.ones(12)
    )
    assert evaluate(data, found).numbers["AP"] == 1.0
    config = DataConfig(
        root=str(tmp_path),
        train=SplitConfig(images=".", annotations="a.json"),
        val=SplitConfig(images=".", annotations="a.json"),
        crowd="include",
    )
    for i in range(3):
        write_image(tmp_path / f"{i}.jpg", textured(240, 320, i))
    with pytest.raises(ConfigError, match=r"3 boxes of .* are marked \"ignore\": 1"):
        read_split(config, config.train)


def test_one_image_listed_twice_is_refused(read: Read) -> None:
    images = [
        {"id": i, "file_name": name, "width": 320, "height": 240}
        for i, name in enumerate(("0.jpg", "b/../0.jpg", "1.jpg"))
    ]
    with pytest.raises(DataError, match=r"/images/1/file_name: .* already the image of /images/0"):
        read([{"bbox": box} for box in BOXES], images=images)


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([(0, "cells", "none"), (1, "cell", "cells"), (2, "plate", "cells")], ("cell", "plate")),
        ([(0, "cell", "none"), (1, "cell", "cell")], ("cell",)),
        ([(0, "cells", ""), (1, "cell", "")], ("cells", "cell")),
        ([(0, "cells", "none"), (1, "cell", "none")], ("cells", "cell")),
        ([(1, "cells", "none"), (2, "cell", "cells")], ("cells", "cell")),  # It has boxes.
    ],
)
def test_a_category_above_all_others_is_no_class(
    read: Read, categories: list[tuple[int, str, str]], expected: tuple[str, ...]
) -> None:
    rows = [{"id": i, "name": name, "supercategory": above} for i, name, above in categories]
    result = read([{"bbox": box} for box in BOXES], categories=rows)
    assert result.dataset.label_map.names == expected
    assert ("root_category" in kinds(result)) is (len(expected) < len(rows))


def test_a_name_that_would_command_a_terminal_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"/categories/0/name: .*x1b.* holds a control character"):
        read([], categories=[{"id": 1, "name": "\x1b[31mred"}])


@pytest.mark.parametrize(
    ("there", "named", "says"),
    [
        ("sub/a.jpg", "sub\\a.jpg", "sub/a.jpg is there, without backslashes"),
        ("my a.jpg", "my%20a.jpg", "my a.jpg is there, without escapes"),
        ("a.JPG", "a.jpg", "a.JPG is there, with capitals elsewhere"),
        ("\u00e9.jpg", "e\u0301.jpg", "with letters composed otherwise"),
        ("sub/a.jpg", "C:\\data\\a.jpg", "sub/a.jpg is there, in another folder"),
        ("a.png", "a.jpg", "a.png is there, with another suffix"),
        ("a.jpg", "a.jpg,8,8,24,20,cell", "a.jpg is there; what follows it looks like a row"),
    ],
)
def test_another_spelling_is_named(tmp_path: Path, there: str, named: str, says: str) -> None:
    write_image(tmp_path / "images" / "b.png", textured(10, 10, 0))
    (tmp_path / "images" / there).parent.mkdir(exist_ok=True)
    (tmp_path / "images" / there).write_bytes((tmp_path / "images" / "b.png").read_bytes())
    found = Lookalikes.below(tmp_path / "images").of(named)
    assert found is not None
    assert says in found
    assert Lookalikes.below(tmp_path / "images").of("nothing.like.it") is None
    image = {"id": 0, "file_name": named, "width": 320, "height": 240}
    (tmp_path / "a.json").write_text(json.dumps({**tree_of([]), "images": [image]}))
    with pytest.raises(DataError, match="correct the names in the annotations"):
        read_coco(tmp_path / "images", tmp_path / "a.json")


def test_the_name_of_the_xml_is_tried(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "0007.jpg", textured(240, 320, 0))
    write_xml(tmp_path, "", stem="0007", filename="IMG_0001.jpg")
    with pytest.raises(DataError, match=r"0007.jpg is there, named like its annotation file"):
        read_voc(tmp_path / "images", tmp_path / "Annotations", CLASSES)


def test_links_out_of_the_folder_need_to_be_allowed(tmp_path: Path) -> None:
    write_image(tmp_path / "store" / "af3c.jpg", textured(10, 20, 0))
    (tmp_path / "store" / "77").write_text("0 0.5 0.5 0.5 0.5\n")
    for folder, name, target in (("images", "a.jpg", "af3c.jpg"), ("labels", "a.txt", "77")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).symlink_to(tmp_path / "store" / target)
    places = tmp_path / "images", tmp_path / "labels", CLASSES
    with pytest.raises(SecurityError, match=r"data\.follow_links=true"):
        read_yolo(*places)
    allowed = ReadRules(follow_links=True)
    assert read_yolo(*places, allowed).dataset.boxes_xywh.tolist() == [[5, 2.5, 10, 5]]
    # A name that leads out stays refused.
    (tmp_path / "list.txt").write_text("../store/af3c.jpg\n")
    with pytest.raises(SecurityError, match="lead out of the image folder"):
        read_txt(tmp_path / "images", tmp_path / "list.txt", CLASSES, allowed)


def test_files_of_other_kinds_among_yolo_images_are_counted(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg", textured(10, 20, 0))
    (tmp_path / "images" / "a.jpg").rename(tmp_path / "images" / "a.jfif")
    for name in ("b.HEIC", "notes.txt", ".hidden.raw"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "labels").mkdir()
    result = read_yolo(tmp_path / "images", tmp_path / "labels", CLASSES)
    assert result.dataset.files == ("a.jfif",)
    (finding,) = result.findings
    assert (finding.kind, finding.examples) == ("passed_over", ("b.HEIC",))


@pytest.mark.parametrize(
    ("name", "text", "names", "ids"),
    [
        ("data.yaml", "names: [cell, plate]\nnc: 2\n", ("cell", "plate"), (0, 1)),
        (
            "data.yaml",
            "path: .\ntrain: images/train\nval: images/val\nnames:\n  0: cell\n  1: plate\n",
            ("cell", "plate"),
            (0, 1),
        ),
        ("data.yml", "names:\n- no\n- 7\n", ("no", "7"), (0, 1)),
        ("classes.txt", "0\n1\n2\n", ("0", "1", "2"), (0, 1, 2)),
        (
            "classes.txt",
            "person [child]\n7 up\nN/A\n",
            ("person [child]", "7 up", "N/A"),
            (0, 1, 2),
        ),
    ],
)
def test_classes_of_every_form(
    tmp_path: Path, name: str, text: str, names: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path / name) == LabelMap(names, ids)


@pytest.mark.parametrize(
    "text",
    [
        '["cell", "plate"]',
        '{"0": "cell", "1": "plate"}',
        '{"1": "plate", "0": "cell"}',
        '{"plate": 1, "cell": 0}',
        '{"names": ["cell", "plate"]}',
        '{"categories": [{"id": 1, "name": "plate"}, {"id": 0, "name": "cell"}], "images": []}',
        '[{"id": 0, "name": "cell"}, {"id": 1, "name": "plate", "supercategory": "x"}]',
    ],
)
def test_classes_in_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "notes.json").write_text(text)
    assert read_classes(tmp_path / "notes.json") == LabelMap(("cell", "plate"), (0, 1))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"1": "cell", "2": "plate"}', "numbers 1, 2; expected are 0 to 1"),
        ('{"cell": 0, "plate": 2}', "numbers 0, 2; expected are 0 to 1"),
        ('{"categories": [{"id": 1, "name": "cell"}]}', "numbers 1; expected are 0 to 0"),
        ('{"0": "cell", "1": "cell"}', "'cell' is named twice"),
        ('["cell", "cell"]', "'cell' is named twice"),
        ('{"cell": 0, "cell": 1}', "stands twice"),
        ('{"cell": 0, "plate": true}', "'plate' is a boolean"),
        ('{"0": "cell", "1": 0}', "'1' is an integer"),
        ('["cell", 7]', "entry 0 is a string"),
        ('["cell", ""]', "is no name"),
        ('["\\u001b[31mred"]', "holds a control character"),
        ('["background"]', "no class but background"),
        ("[]", "holds no class"),
        ("{}", "holds an object"),
        ("7", "holds an integer"),
        ('["cell",', "notes.json:1:9: not valid JSON"),
        ("[" * 100_000, "cannot be read as JSON|not valid JSON"),
    ],
)
def test_json_that_names_no_classes_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "notes.json").write_text(text)
    with pytest.raises(DataError, match=match):
        read_classes(tmp_path / "notes.json")


def test_a_control_character_in_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text('names: ["\\e[31mred"]\n')
    with pytest.raises(DataError, match="holds a control character"):
        read_classes(tmp_path / "data.yaml")


def test_a_set_annotated_as_displayed_is_converted_and_sharded_as_such(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "labels").mkdir()
    Image.fromarray(textured(20, 40, 0)).save(tmp_path / "set" / "images" / "a.jpg", exif=exif)
    (tmp_path / "set" / "labels" / "a.txt").write_text("0 0.5 0.25 0.5 0.25\n")
    (tmp_path / "set" / "classes.txt").write_text("cell\n")
    section = {
        "root": str(tmp_path / "set"),
        "format": "yolo",
        "orientation": "displayed",
        **{key: {"images": "images", "annotations": "labels"} for key in ("train", "val")},
    }
    config = DataConfig.model_validate_json(json.dumps(section))
    read = {"train": read_split(config, config.train)}
    # 20 by 40 pixels as displayed.
    assert read["train"].dataset.boxes_xywh.tolist() == [[5, 5, 10, 10]]
    converted = convert(read, "coco", tmp_path / "coco")["train"]
    back = read_coco(converted.place.images, converted.place.annotations).dataset
    assert (back.widths.tolist(), back.heights.tolist()) == ([20], [40])
    assert convert(read, "txt", tmp_path / "txt")["train"].lost[0].startswith("orientation")
    shard = put_shard(read["train"].dataset, open_folder(str(tmp_path / "shards")), 0, 8)
    assert shard.sound == [True]


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("fractions/e.yaml", "53 of 53 boxes lie within the first pixel"),
        (
            "doubled/e_twins.yaml",
            "/images/24/file_name: 'p001.jpg' is already the image of /images/0",
        ),
        ("doubled/e.yaml", {"equal_box": 53}),
        ("root_category/e.yaml", {"root_category": 1}),
        ("root_category/e1.yaml", {"root_category": 1}),
        ("ultralytics/e.yaml", {}),
        ("roboflow_yolo/e.yaml", {}),
    ],
)
def test_inputs_of_public_reports(case: str, says: str | dict[str, int]) -> None:
    file = CASES / case
    if not file.is_file():
        pytest.skip(f"{CASES} is not there: the inputs of public reports lie beside the repository")
    config = load_experiment(file, [f"data.root={file.parent}"]).experiment.data
    if isinstance(says, str):
        with pytest.raises(DataError, match=re.escape(says)):
            read_splits(config)
        return
    train, _ = read_splits(config)
    assert {one.kind: one.count for one in train.findings} == says
    names = ("cell",) if case.endswith("e1.yaml") else ("cell", "plate")
    assert train.dataset.label_map.names == names
    # A perfect detector finds every box once.
    boxes = train.dataset.boxes_xywh
    images = np.arange(len(train.dataset)).repeat(np.diff(train.dataset.offsets))
    assert len({(i, *box) for i, box in zip(images, boxes.tolist(), strict=True)}) == len(boxes) > 0
