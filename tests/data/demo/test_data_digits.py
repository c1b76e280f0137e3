from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_image

from orchestrator.data.decode import read_image
from orchestrator.data.demo.digits import Recipe, build_digits, is_complete, main
from orchestrator.data.demo.scenes import (
    SCENE_SIZE,
    SceneSource,
    render_scene,
    tight_box,
)
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import StorageError

SMALL = Recipe(train=6, val=4, seed=3)


def tree_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "digits"
    assert build_digits(folder, SMALL)
    return folder


def test_is_an_ordinary_coco_folder(digits: Path) -> None:
    for split, count in (("train", 6), ("val", 4)):
        result = read_coco(digits / "images", digits / "annotations" / f"instances_{split}.json")
        data = result.dataset
        assert result.findings == ()
        assert len(data) == count
        assert data.label_map.names == tuple("0123456789")
        assert len(data.labels) >= 3 * (count - 1)
        for index in range(count):
            assert read_image(data.path(index)).shape == (SCENE_SIZE, SCENE_SIZE, 3)
            x, y, w, h = data.boxes_xywh[data.boxes_of(index)].T
            assert (x >= 0).all()
            assert (y >= 0).all()
            assert (x + w <= SCENE_SIZE).all()
            assert (y + h <= SCENE_SIZE).all()


def test_splits_have_distinct_image_and_annotation_ids(digits: Path) -> None:
    trees = [
        json.loads((digits / "annotations" / f"instances_{split}.json").read_text())
        for split in ("train", "val")
    ]
    for key in ("images", "annotations"):
        ids = [entry["id"] for tree in trees for entry in tree[key]]
        assert len(set(ids)) == len(ids)


def test_same_recipe_same_bytes(digits: Path, tmp_path: Path) -> None:
    build_digits(tmp_path / "again", SMALL)
    assert tree_bytes(tmp_path / "again") == tree_bytes(digits)


def test_other_seed_other_scenes(digits: Path, tmp_path: Path) -> None:
    build_digits(tmp_path / "other", Recipe(train=6, val=4, seed=4))
    one, other = tree_bytes(tmp_path / "other"), tree_bytes(digits)
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_more_scenes_begin_with_the_same_ones(digits: Path, tmp_path: Path) -> None:
    build_digits(tmp_path / "more", Recipe(train=7, val=4, seed=3))
    before, after = tree_bytes(digits), tree_bytes(tmp_path / "more")
    assert all(after[name] == data for name, data in before.items() if name.endswith(".jpg"))


def test_complete_set_is_left_alone(digits: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert not build_digits(digits, SMALL)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == times


@pytest.mark.parametrize("damage", ["missing image", "changed image", "extra image", "no note"])
def test_incomplete_set_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    recipe = Recipe(train=2, val=1)
    build_digits(folder, recipe)
    whole = tree_bytes(folder)
    image = folder / "images" / "train_00001.jpg"
    if damage == "missing image":
        image.unlink()
    elif damage == "changed image":
        image.write_bytes(image.read_bytes()[:-1])
    elif damage == "extra image":
        (folder / "images" / "more.jpg").write_bytes(b"")
    else:
        (folder / "digits.json").write_text("{")
    assert not is_complete(folder, recipe)
    assert build_digits(folder, recipe)
    assert tree_bytes(folder) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work")
    with pytest.raises(StorageError, match="not empty and not a digits data set"):
        build_digits(tmp_path, SMALL)
    assert main([str(tmp_path)]) == 71
    assert (tmp_path / "thesis.tex").exists()


def test_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("orchestrator.data.demo.digits.render_scene", fail)
    with pytest.raises(OSError, match="disk full"):
        build_digits(tmp_path / "set", SMALL)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "d"), "--train", "2", "--val", "1", "--seed", "9"]
    assert main(arguments) == 0
    assert main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("2 training and 1 validation scenes, written")
    assert second.endswith("already complete")
    assert is_complete(tmp_path / "d", Recipe(train=2, val=1, seed=9))


@pytest.fixture(scope="module")
def source() -> SceneSource:
    raw = load_digits()
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return SceneSource(raw.images, raw.target.astype(np.int64), photographs)


def test_tight_box_by_hand() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 6] = True
    assert tight_box(mask) == (3, 2, 4, 3)


def test_boxes_are_tight_around_what_the_digit_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a flat background, whatever differs from it is a digit."""
    monkeypatch.setattr("orchestrator.data.demo.scenes.COUNTS", (3, 3))
    black = np.zeros((64, 64, 3), dtype=np.uint8)
    found = 0
    for index in range(60):
        glyph = np.zeros((1, 8, 8))
        glyph[0, 1:7, 2:6] = 16.0
        scene = render_scene(
            SceneSource(glyph, np.array([3]), [black]), seed=1, split=0, index=index
        )
        # Textured backgrounds and scenes with a digit at the very edge are of no use here.
        corner = scene.image[0, 0].astype(int)
        if len(scene.placed) != 3 or (scene.image[:, [0, -1]] != corner).any():
            continue
        changed = np.abs(scene.image.astype(int) - corner).max(axis=2) > 0
        boxes = np.zeros_like(changed)
        for placed in scene.placed:
            x, y, w, h = placed.box
            boxes[y : y + h, x : x + w] = True
            assert placed.label == 3
            assert 0 < placed.area <= w * h
            # Every side of the box touches the digit.
            inner = changed[y : y + h, x : x + w]
            assert inner[0].any()
            assert inner[-1].any()
            assert inner[:, 0].any()
            assert inner[:, -1].any()
        # Outside there is nothing but the soft edge of the strokes.
        assert (changed & ~boxes).sum() < 0.2 * changed.sum()
        found += 1
    assert found >= 3


def test_scenes_vary_and_stay_within_their_limits(source: SceneSource) -> None:
    scenes = [render_scene(source, seed=1, split=0, index=index) for index in range(80)]
    counts = Counter(len(scene.placed) for scene in scenes)
    assert counts[0] == 2
    assert max(counts) == 11
    assert min(count for count in counts if count) >= 6
    labels = Counter(placed.label for scene in scenes for placed in scene.placed)
    assert set(labels) == set(range(10))
    sides = [max(placed.box[2:]) for scene in scenes for placed in scene.placed]
    assert min(sides) >= 30
    assert max(sides) > 90
    assert len({scene.image.tobytes() for scene in scenes}) == 80
