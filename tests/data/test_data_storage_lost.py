"""A disk that fails and a mount that is lost are no bad images: nothing is replaced or left out."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data import decode, files
from orchestrator.data.decode import BadImageError, read_header, read_image
from orchestrator.data.images import image_exists, require_still_there
from orchestrator.data.mixture import MixedSource, mix_sources
from orchestrator.data.readers.coco import read_coco
from orchestrator.errors import StorageError
from orchestrator.storage.plain_files import open_regular
from tests.support.data_cases import make_plan, write_coco
from tests.support.shard_cases import shard_here

Lose = Callable[[Path], object]


def failing(code: int, name: str) -> Callable[[Path], Any]:
    """``open_regular`` that fails for files of that name, as a disk or a mount does."""

    def opened(path: Path) -> Any:
        if path.name == name:
            raise OSError(code, os.strerror(code), str(path))
        return open_regular(path)

    return opened


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_WAITS", (0.0, 0.0))


STORAGE = ("EIO", "ESTALE", "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "EMFILE", "ENOMEM")
ITSELF = ("ENOENT", "EACCES", "EISDIR", "ELOOP", "ENAMETOOLONG")


@pytest.mark.parametrize("name", STORAGE + ITSELF)
def test_what_is_to_blame_is_told_apart(name, coco_folder, monkeypatch) -> None:
    monkeypatch.setattr(decode, "open_regular", failing(getattr(errno, name), "003.jpg"))
    path = coco_folder / "images" / "003.jpg"
    kind = StorageError if name in STORAGE else BadImageError
    for look in (read_image, read_header):
        with pytest.raises(kind, match=r"003\.jpg: cannot be read") as caught:
            look(path)
        assert type(caught.value) is kind


@pytest.mark.parametrize("times", [1, 2])
def test_a_hiccup_is_waited_for(times, coco_folder, monkeypatch) -> None:
    left = times

    def opened(path: Path) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return open_regular(path)

    monkeypatch.setattr(decode, "open_regular", opened)
    assert read_image(coco_folder / "images" / "003.jpg").ndim == 3
    left = times
    assert read_header(coco_folder / "images" / "003.jpg").kind == "JPEG"


@pytest.fixture
def folder(coco_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(coco_folder, tmp_path / "data")
    return tmp_path / "data"


def test_no_image_takes_the_place_of_one_that_a_disk_withholds(folder, monkeypatch) -> None:
    plan = make_plan(folder)
    monkeypatch.setattr(decode, "open_regular", failing(errno.EIO, "003.jpg"))
    with pytest.raises(StorageError, match=r"003\.jpg: cannot be read \(Input/output error\)"):
        [plan.train_batch(step, 0, 1) for step in range(plan.schedule.steps_per_epoch)]
    with pytest.raises(StorageError, match=r"003\.jpg"):
        [plan.eval_batch_at(index, 0, 1) for index in range(plan.eval_batch_count(1))]


def emptied(images: Path) -> None:
    """What a mount leaves behind."""
    images.rename(images.with_name("elsewhere"))
    images.mkdir()


@pytest.mark.parametrize("lose", [emptied, shutil.rmtree])
def test_a_folder_that_is_lost_is_no_folder_of_bad_images(lose: Lose, folder: Path) -> None:
    plan = make_plan(folder)
    plan.train_batch(0, 0, 1)
    lose(folder / "images")
    for read in (lambda: plan.train_batch(1, 0, 1), lambda: plan.eval_batch_at(0, 0, 1)):
        with pytest.raises(StorageError, match=r"is gone, and so are all \d+ other images"):
            read()


def test_one_file_that_somebody_removed_is_replaced(folder: Path) -> None:
    plan = make_plan(folder)
    (folder / "images" / "003.jpg").unlink()
    steps = range(plan.schedule.steps_per_epoch)
    assert {s for step in steps for _, s, _ in plan.train_batch(step, 0, 1).replaced} == {3}


def test_the_lost_one_of_two_sources_is_noticed(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_coco(tmp_path / name, 6, seed=number)
    one, two = (
        read_coco(tmp_path / name / "images", tmp_path / name / "instances.json").dataset
        for name in "ab"
    )
    data = mix_sources(one, [MixedSource(two, {}, "b")])
    emptied(tmp_path / "b" / "images")
    require_still_there(data, 2)
    with pytest.raises(StorageError, match="all 5 other images"):
        require_still_there(data, 8)


def test_no_shard_holds_an_empty_image_for_a_disk_that_failed(folder, tmp_path, monkeypatch):
    data = read_coco(folder / "images", folder / "instances.json").dataset
    with monkeypatch.context() as patch:
        patch.setattr(decode, "open_regular", failing(errno.EIO, "003.jpg"))
        with pytest.raises(StorageError, match=r"003\.jpg: cannot be read"):
            shard_here(data, str(tmp_path / "shards"))
    shard_here(data, str(tmp_path / "shards"))
    shard_here(data, str(tmp_path / "sound"))
    stored = [file.read_bytes() for file in sorted((tmp_path / "shards").glob("*.parquet"))]
    assert stored == [file.read_bytes() for file in sorted((tmp_path / "sound").glob("*.parquet"))]
    assert len(stored) == 6


@pytest.mark.parametrize("lose", [emptied, shutil.rmtree])
def test_a_folder_that_is_lost_gives_no_shard(lose: Lose, folder: Path, tmp_path: Path) -> None:
    data = read_coco(folder / "images", folder / "instances.json").dataset
    lose(folder / "images")
    with pytest.raises(StorageError, match=r"is gone, and so are all \d+ other images"):
        shard_here(data, str(tmp_path / "shards"))
    assert not list((tmp_path / "shards").glob("*.parquet"))


def test_annotations_that_a_disk_withholds_are_not_bad_data(folder, monkeypatch) -> None:
    monkeypatch.setattr(files, "open_regular", failing(errno.ESTALE, "instances.json"))
    with pytest.raises(StorageError, match=r"instances\.json: cannot be read \(Stale file handle"):
        read_coco(folder / "images", folder / "instances.json")


def test_whether_an_image_is_there_may_be_unknown(folder, monkeypatch) -> None:
    data = read_coco(folder / "images", folder / "instances.json").dataset

    def withheld(path: Path) -> bool:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    monkeypatch.setattr(Path, "exists", withheld)
    with pytest.raises(StorageError, match="not connected"):
        image_exists(data, 0)
