"""Boxes in units other than pixels, as corners or turned: read right, or refused with words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.plausibility import BOXES_IN_CORNER
from orchestrator.data.readers.txt import read_txt
from orchestrator.data.readers.voc import read_voc
from orchestrator.errors import DataError
from tests.support.data_cases import textured, write_image
from tests.support.odd_annotations import BOXES, Read, write_xml

CLASSES = LabelMap(("cat", "dog"), (0, 1))


def test_boxes_in_pixels_are_left_alone(read: Read) -> None:
    result = read([{"bbox": box} for box in BOXES])
    assert result.findings == ()
    assert sorted(result.dataset.boxes_xywh.tolist()) == sorted(BOXES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y, w, h: [x / 320, y / 240, w / 320, h / 240], "as fractions of the image do"),
        (lambda x, y, w, h: [x / 3.2, y / 2.4, w / 3.2, h / 2.4], "as per cent of the image do"),
        (lambda x, y, w, h: [x, y, x + w, y + h], "all would fit as x1, y1, x2, y2"),
    ],
    ids=["fractions", "per cent", "corners"],
)
def test_boxes_in_other_units_are_refused(
    read: Read, change: Callable[..., list[float]], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read([{"bbox": change(*box)} for box in BOXES])
    assert "/annotations/" in str(caught.value)
    assert "320x240" in str(caught.value)


#: Thirty-six boxes of whole pixels all over images of 320x240.
MANY = [[float(54 * (i % 6)), float(40 * (i // 6)), 48.0, 38.0] for i in range(36)]


LARGE = [{"id": i, "file_name": f"{i}.jpg", "width": 2400, "height": 2000} for i in range(3)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y, w, h: [x, y, w, h], None),
        (lambda *box: np.rint(np.divide(box, (3.2, 2.4) * 2)).tolist(), "as per cent of"),
        (lambda *box: np.rint(np.divide(box, (0.32, 0.24) * 2)).tolist(), "be per mille of"),
        (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "with x and y as their centres"),
        (lambda x, y, w, h: [y, x, h, w], "all would fit with x and y exchanged"),
        (lambda x, y, w, h: [x + w, y + h, -w, -h], "have a negative width or height"),
        # 0.5 of 0.503 and 0.504: the rightmost box ends at 318 of 320, the lowest at 238 of 240.
        (lambda x, y, w, h: [2 * x, 2 * y, 2 * w, 2 * h], "all would fit at 0.5 times"),
        (lambda x, y, w, h: [x + 500, y, w, h], "36 of 36 boxes lie outside of their images"),
    ],
    ids=["pixels", "per cent", "per mille", "centres", "y, x", "backwards", "larger", "off"],
)
def test_whole_numbers_that_are_no_pixels_of_the_image_are_refused(
    read: Read, change: Callable[..., list[float]], says: str | None
) -> None:
    entries = [{"bbox": change(*box)} for box in MANY]
    if says is None:
        assert sorted(read(entries).dataset.boxes_xywh.tolist()) == sorted(MANY)
        return
    with pytest.raises(DataError, match=says) as caught:
        read(entries)
    assert "/annotations/" in str(caught.value)


def test_per_mille_of_large_images(read: Read) -> None:
    entries = [{"bbox": [x / 0.32, y / 0.24, w / 0.32, h / 0.24]} for x, y, w, h in MANY]
    with pytest.raises(DataError, match="first thousand pixels of larger images, as per mille"):
        read(entries, images=LARGE)
    # A few objects in a corner are objects in a corner.
    assert len(read(entries[:6], images=LARGE).dataset) == 3


#: What broadcasters and cameras put into a corner, in pixels of images of 1920x1080.
OVERLAYS = {
    "a logo": [[24.05, 19.95, 60.5, 40.25]],
    "a logo in whole pixels": [[3.0, 2.0, 92.0, 93.0]],
    "a logo and a clock": [[5.5, 4.5, 40.25, 12.0], [50.5, 30.0, 45.25, 60.0]],
    "a line of two parts": [[2.5, 3.5, 30.0, 12.5], [64.5, 3.5, 32.0, 12.5]],
}


@pytest.mark.parametrize("what", OVERLAYS)
def test_objects_in_the_corner_of_every_picture_are_pixels(read: Read, what: str) -> None:
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 1920, "height": 1080} for i in range(30)]
    boxes = np.tile(OVERLAYS[what], (len(images), 1))
    if (boxes % 1).any():
        boxes[:, :2] += np.random.default_rng(4).normal(0, 0.4, (len(boxes), 2)).round(2)
    entries = [
        {"bbox": box.tolist(), "image_id": row * len(images) // len(boxes)}
        for row, box in enumerate(boxes)
    ]
    result = read(entries, images=images)
    assert len(result.dataset.labels) == len(entries)
    (said,) = (one for one in result.findings if one.kind == BOXES_IN_CORNER)
    assert said.count == len(entries)
    assert "per cent" in said.action


@pytest.mark.parametrize("side", [0, 1])
def test_objects_that_leave_the_image_on_one_side_are_pixels(read: Read, side: int) -> None:
    boxes = []
    for box in MANY:
        moved = [60 + box[0] / 4, 60 + box[1] / 4, *box[2:]]
        # Beyond the edge by less than half of the box.
        moved[side] = (320, 240)[side] - 0.7 * moved[2 + side] - moved[1 - side] / 100
        boxes.append(moved)
    result = read([{"bbox": box} for box in boxes])
    assert "over_edge_box" in {finding.kind for finding in result.findings}


def test_areas_tell_corners_that_would_fit_as_sizes(read: Read) -> None:
    def entry(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        x, y = x / 4, y / 4
        return {"bbox": [x, y, x + w, y + h], "area": w * h}

    with pytest.raises(DataError, match=r"35 of 36 boxes have the area that they have as x1, y1"):
        read([entry(*box) for box in MANY])


@pytest.mark.parametrize("mode", [0, "XYXY_ABS", 3, None, True])
def test_boxes_that_say_they_are_corners_are_refused(read: Read, mode: object) -> None:
    with pytest.raises(DataError, match=r"/annotations/0/bbox_mode: .*expected 1 \(XYWH_ABS\)"):
        read([{"bbox": box, "bbox_mode": mode} for box in BOXES])
    for same in (1, "XYWH_ABS"):
        assert read([{"bbox": box, "bbox_mode": same} for box in BOXES]).findings == ()


@pytest.mark.parametrize(
    "entry",
    [{"angle": 90}, {"rotation": 90.0}, {"attributes": {"rotation": "90"}}, {"angle": "-90.0"}],
)
def test_an_angle_by_another_name_or_as_text(read: Read, entry: dict[str, Any]) -> None:
    result = read([{"bbox": [100, 80, 60, 20], **entry}])
    # About the centre (130, 90).
    assert result.dataset.boxes_xywh[0].tolist() == pytest.approx([120, 60, 20, 60])


def test_an_angle_of_unknown_unit_is_refused(read: Read) -> None:
    with pytest.raises(DataError, match=r"/annotations/0/theta: turns the box by an angle"):
        read([{"bbox": [100, 80, 60, 20], "theta": 0.5}])
    assert read([{"bbox": [100, 80, 60, 20], "theta": 0, "area": 1200}]).findings == ()


def test_fractions_in_lines_of_text_and_in_xml_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.jpg", textured(240, 320, 0))
    corners = [(0.1, 0.2, 0.4, 0.6), (0.5, 0.5, 0.9, 0.8), (0.05, 0.1, 0.3, 0.35)]
    line = " ".join(f"{a},{b},{c},{d},0" for a, b, c, d in corners)
    (tmp_path / "train.txt").write_text(f"a.jpg {line}\n")
    with pytest.raises(DataError, match=r"as fractions of the image do; the first, at train.txt:1"):
        read_txt(tmp_path / "images", tmp_path / "train.txt", CLASSES)
    objects = "".join(
        f"<object><name>cat</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
        f"<ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in corners
    )
    write_xml(tmp_path, objects)
    with pytest.raises(DataError, match="as fractions of the image do"):
        read_voc(tmp_path / "images", tmp_path / "Annotations", CLASSES)
