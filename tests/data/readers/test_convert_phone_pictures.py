"""Pictures with an orientation tag, converted from and to formats that take sizes from headers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.data.readers.convert import read_place
from orchestrator.layouts.recognise import find_layout
from tests.support.phone_pictures import BOXES, write_phone


def test_sizes_of_tagged_images_are_taken_as_they_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    write_phone(tmp_path / "set", 6)
    arguments = ["convert", "data", str(tmp_path / "set"), "--to", "coco"]
    assert main([*arguments, str(tmp_path / "stored")]) == 0
    printed = capsys.readouterr().out
    assert "wrong_orientation: 6 of 6 images are to be turned" in printed
    assert "they fit the picture as displayed: pass --orientation displayed" in printed
    assert main([*arguments, str(tmp_path / "out"), "--orientation", "displayed"]) == 0
    printed = capsys.readouterr().out
    assert "which is where they fit" in printed
    assert f"  root: {tmp_path / 'out'}\n  orientation: displayed\n" in printed
    place = find_layout(tmp_path / "out", "coco").splits["all"]
    data = read_place("coco", place, None).dataset
    boxes = [data.boxes_xywh[data.boxes_of(i)][0].round(9).tolist() for i in range(6)]
    assert boxes == [list(map(float, box)) for box in BOXES]


def test_sizes_of_turned_pictures_name_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    write_phone(tmp_path / "set", 6, "coco")
    shutil.rmtree(tmp_path / "set" / "labels")
    arguments = ["convert", "data", str(tmp_path / "set" / "a.json"), "--to", "yolo"]
    assert main([*arguments, str(tmp_path / "out")]) == 65
    assert (
        "but is of width 40 as it is stored; if a tag turns it, pass --orientation displayed"
        in (capsys.readouterr().err)
    )
    assert main([*arguments, str(tmp_path / "out"), "--orientation", "displayed"]) == 0
