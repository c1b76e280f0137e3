"""What the doctor says of sound images: orientation tags, unused grey levels, crowds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.config.schema import DataConfig
from orchestrator.data.doctor.diagnosis import Verdict
from orchestrator.data.doctor.examine import examine, require_usable
from orchestrator.data.doctor.image_notes import crowded
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.split import read_split
from orchestrator.errors import DataError
from tests.support.phone_pictures import BOXES, write_phone


def notes_of(config: DataConfig) -> dict[str, tuple[Verdict, str]]:
    report = examine(config).report
    return {one.finding.kind: (one.verdict, str(one.finding)) for one in report.diagnoses}


@pytest.mark.parametrize(
    ("kind", "tag"), [("yolo", 6), ("yolo", 3), ("coco", 3), ("txt", 6), ("txt", 3)]
)
def test_the_orientation_that_boxes_fit_is_named(tmp_path: Path, kind: str, tag: int) -> None:
    config = write_phone(tmp_path, tag, kind)
    verdict, text = notes_of(config)["wrong_orientation"]
    assert verdict is Verdict.WARNING
    assert "6 of 6 images are to be turned" in text
    assert "fit the picture as displayed: set data.orientation=displayed" in text
    right = config.model_copy(update={"orientation": "displayed"})
    assert "which is where they fit" in notes_of(right)["orientation_tag"][1]
    # A run says it before it begins.
    data = read_split(config, config.train).dataset
    (note,) = require_usable(data, "train", 0.01, kind=kind)
    assert "set data.orientation=displayed" in note.action
    # As displayed, every box holds the bright rectangle.
    data = read_split(right, right.train).dataset
    boxes = [data.boxes_xywh[data.boxes_of(i)][0].tolist() for i in range(6)]
    assert np.allclose(boxes, BOXES)


def test_sizes_that_fit_only_the_displayed_picture_say_so(tmp_path: Path) -> None:
    config = write_phone(tmp_path, 6, "coco")
    found = notes_of(config)
    assert found["wrong_size_image"][0] is Verdict.QUARANTINE
    assert "data.orientation=displayed takes it so" in found["wrong_size_image"][1]
    right = config.model_copy(update={"orientation": "displayed"})
    assert "which is where they fit" in notes_of(right)["orientation_tag"][1]
    assert "wrong_size_image" not in notes_of(right)


def write_as_stored(file: Path, box: Callable[..., list[float]]) -> None:
    """Give pictures the sizes that lie in the file, and their boxes what ``box`` makes of them."""
    tree = json.loads(file.read_text())
    for image in tree["images"]:
        image["width"], image["height"] = 40, 60
    for one in tree["annotations"]:
        one["bbox"] = box(*one["bbox"])
    file.write_text(json.dumps(tree))


def test_sizes_of_headers_whose_tags_were_overlooked_are_seen(tmp_path: Path) -> None:
    """YOLO made into COCO by a script: sizes as stored, boxes as fractions of what people saw."""
    config = write_phone(tmp_path, 6, "coco")
    # Of a picture of 60 x 40 to one of 40 x 60.
    write_as_stored(
        tmp_path / "a.json", lambda x, y, w, h: [x * 40 / 60, y * 60 / 40, w * 40 / 60, h * 60 / 40]
    )
    verdict, text = notes_of(config)["wrong_orientation"]
    assert verdict is Verdict.WARNING
    assert "fit the picture as displayed, although the annotated sizes are those as stored" in text
    # data.orientation alone would not put it right.
    assert "set data.orientation" not in text


def test_boxes_of_the_pixels_as_stored_are_left_where_they_are(tmp_path: Path) -> None:
    config = write_phone(tmp_path, 6, "coco")
    # Stored, the picture lies on its side: its top edge is the left one, read upwards.
    write_as_stored(tmp_path / "a.json", lambda x, y, w, h: [y, 60 - x - w, h, w])
    verdict, text = notes_of(config)["orientation_tag"]
    assert verdict is Verdict.NOTE
    assert "which is where they fit" in text


def test_pictures_without_tags_say_nothing(tmp_path: Path) -> None:
    assert "orientation_tag" not in notes_of(write_phone(tmp_path, 1))


def write_thermal(folder: Path, low: int, high: int) -> DataConfig:
    config = write_phone(folder, 1, "coco")
    for path in (folder / "images").iterdir():
        values = np.linspace(low, high, 60 * 40).reshape(40, 60).astype(np.uint16)
        path.write_bytes(cv2.imencode(".tiff", values)[1].tobytes())
    return config


def test_grey_levels_that_are_not_used(tmp_path: Path) -> None:
    config = write_thermal(tmp_path, 7200, 7456)
    verdict, text = notes_of(config)["few_grey_levels"]
    assert verdict is Verdict.REFUSE
    assert "6 of 6 images of more than 8 bits" in text
    assert "about 1 of 256 grey levels" in text
    assert "data.levels=used" in text
    data = read_split(config, config.train).dataset
    with pytest.raises(DataError, match="choose one of the three"):
        require_usable(data, "train", 0.01)
    for levels in ("used", (7200.0, 7456.0), (0.0, 65535.0)):
        chosen = config.model_copy(update={"levels": levels})
        assert "few_grey_levels" not in notes_of(chosen)
        assert require_usable(read_split(chosen, chosen.train).dataset, "train", 0.01) == []


def test_twelve_bits_are_worth_a_word(tmp_path: Path) -> None:
    verdict, text = notes_of(write_thermal(tmp_path, 0, 4095))["few_grey_levels"]
    assert verdict is Verdict.NOTE
    assert "about 16 of 256 grey levels" in text


def test_more_boxes_than_are_counted(tmp_path: Path) -> None:
    tree = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "width": 400, "height": 300} for i in range(2)
        ],
        "annotations": [
            {"id": k, "image_id": k % 2, "category_id": 1, "bbox": [k, k % 9, 9, 9], "area": 81}
            for k in range(300)
        ],
        "categories": [{"id": 1, "name": "dot"}, {"id": 2, "name": "none"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(tree))
    note = crowded(read_coco(tmp_path, tmp_path / "a.json", ReadRules(need_images=False)).dataset)
    assert note is not None
    # 100 of 150 boxes in each image: recalls 0.00 to 0.66, 67 of 101.
    assert (note.count, note.examples) == (2, ("0.jpg: 150 of dot", "1.jpg: 150 of dot"))
    assert f"AP {67 / 101:.4f}" in note.action
