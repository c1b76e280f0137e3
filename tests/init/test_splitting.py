"""Splits: stratified, seeded, with equal images on one side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import DataError
from orchestrator.init.make import Wanted, look, make
from orchestrator.init.splitting import cut_into_runs, groups_of, split, stratified, take
from tests.support import layout_folders
from tests.support.data_cases import textured, write_coco, write_image


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


@pytest.mark.parametrize(
    ("sizes", "second"),
    [
        # Large ones first, and the small ones make up for them.
        ([90, 4, 4, 2], 10),
        ([2, 4, 4, 90], 10),
        ([20, 80], 20),
        ([30, 30, 30, 10], 10),
        ([1] * 60, 12),
        # All would go to the first part; the one of the fitting size is moved.
        ([46, 54], 46),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_groups_come_as_near_to_the_share_as_they_can(
    sizes: list[int], second: int, seed: int
) -> None:
    ends = np.cumsum(sizes)
    groups = [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    chosen = stratified(groups, table((1, int(ends[-1]))), share=0.2, seed=seed)
    assert sum(sizes[group] for group in chosen) == second


def one_camera(folder: Path, counts: list[int]) -> Dataset:
    """Images of as many fixed cameras, each with a moving object; the second is a copy."""
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for camera, count in enumerate(counts):
        background = textured(96, 128, seed=camera).astype(int)
        for frame in range(count):
            number = len(images) + 1
            name = f"cam{camera}_frame{frame}.png"
            x, y = int(rng.integers(0, 120)), int(rng.integers(0, 88))
            picture = np.clip(background + rng.normal(0, 2, background.shape), 0, 255)
            picture[y : y + 6, x : x + 6] = (220, 40, 40)
            write_image(folder / name, picture.astype(np.uint8))
            if frame == 1:
                shutil.copyfile(folder / f"cam{camera}_frame0.png", folder / name)
            images.append({"id": number, "file_name": name, "width": 128, "height": 96})
            box = {"bbox": [x, y, 6, 6], "area": 36, "iscrowd": 0}
            annotations.append({"id": number, "image_id": number, "category_id": 1, **box})
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "all.json").write_text(json.dumps(tree))
    return read_coco(folder, folder / "all.json").dataset


@pytest.mark.parametrize(
    ("counts", "second", "cut"),
    [
        ([40], 8, 40),
        ([45, 2, 2, 1], 10, 45),
        # Whole cameras make up the share, so none is cut.
        ([8, 8, 8, 8, 8], 8, 0),
    ],
)
def test_pictures_of_one_camera_are_cut_into_runs(
    counts: list[int], second: int, cut: int, tmp_path: Path
) -> None:
    data = one_camera(tmp_path, counts)
    parts = split(data, share=0.2, seed=1)
    assert (len(parts.val), parts.cut) == (second, cut)
    assert sorted((*parts.train.files, *parts.val.files)) == sorted(data.files)
    copies = {"cam0_frame0.png", "cam0_frame1.png"}
    assert copies <= set(parts.train.files) or copies <= set(parts.val.files)


def test_init_says_that_images_were_cut_into_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    one_camera(tmp_path / "set", [20])
    source = look(Path("set/all.json"), Wanted())
    _, told, _ = make(source, Wanted(), "cpu", weights=lambda _: False, command="init")
    assert any("20 images look the same and are too many to stay together" in line for line in told)
    assert "# 20 images that look the same cut into runs by file name." in source.output.read_text()


def test_runs_follow_the_numbers_in_names_and_keep_copies(tmp_path: Path) -> None:
    data = one_camera(tmp_path, [12])
    order = list(range(12))
    copies = [[0, 11], *([image] for image in range(1, 11))]
    runs = cut_into_runs(data, [order[::-1]], copies, most=4)
    assert runs == [[0, 11, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]
    assert cut_into_runs(data, [order], [order], most=4) == [order]


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
    copies, groups = groups_of(data, lambda seen: None)
    assert [group for group in copies if len(group) > 1] == [[0, 7]]
    assert [group for group in groups if len(group) > 1] == [[0, 7], [1, 9]]
    for seed in range(4):
        *both, cut = split(data, share=0.4, seed=seed)
        assert cut == 0
        parts = [set(part.files) for part in both]
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
