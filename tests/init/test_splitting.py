"""Splits: stratified, seeded, with equal images on one side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import DataError
from orchestrator.init.splitting import groups_of, split, stratified, take
from tests.support import layout_folders
from tests.support.data_cases import write_coco


def table(*counts: tuple[int, ...]) -> np.ndarray:
    """Rows of classes for so many images each; the last column marks empty images."""
    rows = [row for *row, count in counts for _ in range(count)]
    return np.array([[*row, int(not any(row))] for row in rows], dtype=np.int64)


@pytest.mark.parametrize("seed", range(5))
def test_every_class_is_shared_out_alike(seed: int) -> None:
    # 60 images with the first class, 20 of them and 20 more with the second, 10 with the rare
    # third, 10 empty: a fifth of each belongs to the second part.
    has = table((1, 0, 0, 40), (1, 1, 0, 20), (0, 1, 0, 20), (0, 0, 1, 10), (0, 0, 0, 10))
    chosen = stratified([[i] for i in range(100)], has, share=0.2, seed=seed)
    assert has[chosen].sum(axis=0).tolist() == [12, 8, 2, 2]
    # Images of two classes count for both, so the size may be one off.
    assert len(chosen) == pytest.approx(20, abs=1)
    assert chosen == stratified([[i] for i in range(100)], has, share=0.2, seed=seed)
    assert chosen != stratified([[i] for i in range(100)], has, share=0.2, seed=seed + 1)


def test_a_class_of_one_image_is_learnt_from() -> None:
    has = table((1, 0, 9), (0, 1, 1))
    assert 9 not in stratified([[i] for i in range(10)], has, share=0.2, seed=1)


def test_groups_stay_whole() -> None:
    # Five groups of four: one of them is the fifth that is asked for.
    groups = [[i, i + 5, i + 10, i + 15] for i in range(5)]
    assert len(stratified(groups, table((1, 20)), share=0.2, seed=4)) == 1


def test_two_images_are_one_for_each_and_one_is_too_few() -> None:
    assert len(stratified([[0], [1]], table((1, 2)), share=0.2, seed=1)) == 1
    with pytest.raises(DataError, match="2 images with boxes, in 1 groups that look alike"):
        stratified([[0, 1], [2]], table((1, 2), (0, 1)), share=0.2, seed=1)


def test_the_same_picture_is_never_on_both_sides(tmp_path: Path) -> None:
    write_coco(tmp_path, 12, seed=5)
    images = tmp_path / "images"
    # One copied byte for byte, and one saved anew with other compression.
    shutil.copyfile(images / "000.jpg", images / "007.jpg")
    picture = cv2.imread(str(images / "001.jpg"))
    cv2.imwrite(str(images / "009.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 70])
    tree = json.loads((tmp_path / "instances.json").read_text())
    for one, same in ((0, 7), (1, 9)):
        for side in ("width", "height"):
            tree["images"][same][side] = tree["images"][one][side]
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    data = read_coco(images, tmp_path / "instances.json").dataset
    groups = groups_of(data, lambda seen: None)
    assert [group for group in groups if len(group) > 1] == [[0, 7], [1, 9]]
    for seed in range(4):
        parts = [set(part.files) for part in split(data, share=0.4, seed=seed)]
        assert parts[0] | parts[1] == set(data.files)
        assert not parts[0] & parts[1]
        for pair in ({"000.jpg", "007.jpg"}, {"001.jpg", "009.jpg"}):
            assert pair <= parts[0] or pair <= parts[1]


def test_parts_keep_their_boxes(tmp_path: Path) -> None:
    layout_folders.fiftyone(tmp_path)
    data = read_coco(tmp_path / "data", tmp_path / "labels.json").dataset
    part = take(data, np.array([3, 1]))
    assert list(part.files) == ["p003.jpg", "p001.jpg"]
    assert part.boxes_xywh.tolist() == [
        list(map(float, box)) for name in part.files for _, *box in layout_folders.TRAIN[name]
    ]
    assert part.image_ids.tolist() == [4, 2]
    assert part.offsets.tolist() == [0, 2, 4]
