from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.cli.shard import summary
from orchestrator.config.schema import DataConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError, read_image
from orchestrator.data.images import image_bytes, image_header, image_pixels
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.split import read_split
from orchestrator.data.shards.split import read_shards
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.storage.address import below
from orchestrator.storage.folders import open_folder
from tests.support.data_cases import write_coco
from tests.support.shard_cases import shard_here
from tests.support.user_command import finish, kill_tree, start
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """22 images, one of them without boxes and one below a folder."""
    folder = tmp_path_factory.mktemp("source")
    write_coco(folder, 22)
    tree = json.loads((folder / "instances.json").read_text())
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != 104]
    (folder / "images" / "my dir").mkdir()
    (folder / "images" / "001.jpg").rename(folder / "images" / "my dir" / "Ä.jpg")
    tree["images"][1]["file_name"] = "my dir/Ä.jpg"
    (folder / "instances.json").write_text(json.dumps(tree))
    return read_coco(folder / "images", folder / "instances.json").dataset


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, source: Dataset) -> Path:
    """Four images a shard, two in the last; only to be read."""
    folder = tmp_path_factory.mktemp("shards") / "train"
    assert shard_here(source, str(folder)).found == 0
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_was_written_is_read_back(source: Dataset, shards: Path) -> None:
    assert sorted(content(shards)) == [
        "index.json",
        "manifest.arrow",
        *(f"shard-{number:05d}.parquet" for number in range(6)),
    ]
    back = read_shards(str(shards)).dataset
    assert back.digest == source.digest
    assert back.content_digest == source.content_digest
    assert back.files == source.files
    assert back.shards is not None
    assert back.shards.bounds.tolist() == [0, 4, 8, 12, 16, 20, 22]
    for index in range(len(source)):
        assert image_bytes(back, index) == source.path(index).read_bytes()
        assert np.array_equal(image_pixels(back, index), read_image(source.path(index)))
        header = image_header(back, index)
        assert (header.height, header.width) == (source.heights[index], source.widths[index])


def test_what_every_node_sees_is_not_sent(shards: Path, tmp_path: Path) -> None:
    """A process is given the places of columns, and maps the manifest that it finds there."""
    here = tmp_path / "train"
    shutil.copytree(shards, here)
    data = read_shards(str(here)).dataset
    kept = replace(data, shards=replace(data.shards, kept=3))
    fields = ("image_ids", "widths", "heights", "boxes_xywh", "labels", "areas", "crowd")
    places = ("shard", "offset", "length", "crc", "sound")
    script = (
        "import pickle, sys\n"
        "data = pickle.load(sys.stdin.buffer)\n"
        f"values = [getattr(data, name).tolist() for name in {(*fields, 'offsets')!r}]\n"
        f"values += [getattr(data.shards, name).tolist() for name in {places!r}]\n"
        "sys.stdout.buffer.write(pickle.dumps((values, list(data.files), data.digest)))\n"
    )

    def elsewhere() -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", script]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(
            command, input=sent, capture_output=True, check=False, env=environment
        )

    sent = pickle.dumps(kept)
    for name in fields:
        values = getattr(data, name)
        assert values.strides == (0,) or values.tobytes() not in sent, name
    done = elsewhere()
    assert done.returncode == 0, done.stderr
    values, files, digest = pickle.loads(done.stdout)
    assert values[:8] == [getattr(data, name).tolist() for name in (*fields, "offsets")]
    assert values[8:] == [getattr(data.shards, name).tolist() for name in places]
    assert (files, digest) == (list(data.files), data.digest)
    # Part of it is no column of the file any more.
    part = pickle.loads(pickle.dumps(replace(data, image_ids=data.image_ids[::-1])))
    assert part.image_ids.tolist() == data.image_ids.tolist()[::-1]

    index = json.loads((here / "index.json").read_text())
    (here / "index.json").write_text(json.dumps({**index, "manifest_sha256": "0" * 64}, indent=1))
    assert "not the one that this run has begun with" in elsewhere().stderr.decode()


def test_flags_that_differ_are_sent(tmp_path: Path) -> None:
    write_coco(tmp_path, 6)
    tree = json.loads((tmp_path / "instances.json").read_text())
    tree["annotations"][1]["iscrowd"] = 1
    (tmp_path / "instances.json").write_text(json.dumps(tree))
    data = read_coco(tmp_path / "images", tmp_path / "instances.json").dataset
    shard_here(data, str(tmp_path / "out"))
    back = pickle.loads(pickle.dumps(read_shards(str(tmp_path / "out")).dataset))
    assert back.crowd.tolist() == data.crowd.tolist() == [i == 1 for i in range(len(data.crowd))]


def test_any_parquet_reader_can_read_a_shard(source: Dataset, shards: Path) -> None:
    table = pq.read_table(shards / "shard-00001.parquet")
    assert table.schema.metadata[b"manifest_digest"] == source.digest.encode()
    assert table["file"].to_pylist() == list(source.files[4:8])
    assert table["image_id"].to_pylist() == source.image_ids[4:8].tolist()
    assert table["boxes"].to_pylist() == [
        source.boxes_xywh[source.boxes_of(index)].tolist() for index in range(4, 8)
    ]
    assert table["labels"].to_pylist()[0] == []
    assert table["image"].to_pylist()[3] == source.path(7).read_bytes()


def test_large_images_and_several_row_groups(tmp_path: Path) -> None:
    """More than a page and a row group, with contents that repeat each other."""
    write_coco(tmp_path, 70, boxes=1)
    for number in range(0, 70, 2):
        filler = np.random.Generator(np.random.PCG64(number % 4)).bytes(300_000)
        (tmp_path / "images" / f"{number:03d}.jpg").write_bytes(filler)
    data = read_coco(tmp_path / "images", tmp_path / "instances.json").dataset
    written = shard_here(data, str(tmp_path / "out"), per=69)
    assert len(written.unsound) == 35
    back = read_shards(str(tmp_path / "out")).dataset
    assert pq.read_metadata(tmp_path / "out" / "shard-00000.parquet").num_row_groups == 2
    for index in range(70):
        assert image_bytes(back, index) == data.path(index).read_bytes()


@pytest.mark.parametrize("stop_after", [0, 3, 5])
def test_stopped_half_way_it_ends_in_the_same_bytes(
    source: Dataset, shards: Path, tmp_path: Path, stop_after: int
) -> None:
    folder = tmp_path / "train"
    with pytest.raises(KeyboardInterrupt):
        shard_here(source, str(folder), stop_after=stop_after)
    with pytest.raises(DataError, match="the shards are not finished"):
        read_shards(str(folder))
    (folder / "shard-00000.parquet.tmp-1").write_bytes(b"a write that was cut off")
    assert shard_here(source, str(folder)).found == stop_after
    assert content(folder) == content(shards)


def test_damaged_and_missing_shards_are_written_again(
    source: Dataset, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    shutil.copytree(shards, folder)
    whole = (folder / "shard-00002.parquet").read_bytes()
    (folder / "shard-00002.parquet").write_bytes(whole[:1000])
    (folder / "shard-00004.parquet").unlink()
    with pytest.raises(DataError, match="2 of 6 shards are not those of the index") as caught:
        read_shards(str(folder))
    assert f"shard-00002.parquet: 1000 bytes, expected {len(whole)}" in str(caught.value)
    assert "shard-00004.parquet: missing" in str(caught.value)
    assert shard_here(source, str(folder)).found == 4
    assert content(folder) == content(shards)


def test_an_image_file_that_changed_is_stored_anew(source: Dataset, tmp_path: Path) -> None:
    root = tmp_path / "images"
    shutil.copytree(source.root, root)
    data = replace(source, root=str(root))
    shard_here(data, str(tmp_path / "out"))
    shutil.copyfile(root / "000.jpg", root / "005.jpg")
    assert shard_here(data, str(tmp_path / "out")).found == 5
    back = read_shards(str(tmp_path / "out")).dataset
    assert image_bytes(back, 5) == (root / "000.jpg").read_bytes()


def test_shards_of_other_annotations_are_refused_with_both_digests(
    source: Dataset, shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "train"
    shutil.copytree(shards, folder)
    boxes = source.boxes_xywh.copy()
    boxes[0, 0] += 1.0
    changed = replace(source, boxes_xywh=boxes)
    with pytest.raises(DataError) as caught:
        shard_here(changed, str(folder))
    assert source.digest in str(caught.value)
    assert changed.digest in str(caught.value)
    assert content(folder) == content(shards)
    # A shard that found its way into another folder is recognised by what it carries itself.
    with pytest.raises(KeyboardInterrupt):
        shard_here(changed, str(tmp_path / "other"), stop_after=0)
    shutil.copyfile(folder / "shard-00001.parquet", tmp_path / "other" / "shard-00001.parquet")
    with pytest.raises(DataError, match=r"shard-00001.parquet: these shards are of another") as two:
        shard_here(changed, str(tmp_path / "other"))
    assert source.digest in str(two.value)
    assert changed.digest in str(two.value)


def test_another_length_of_shards_is_refused(source: Dataset, shards: Path) -> None:
    with pytest.raises(ConfigError, match="begun with 4 images a shard, and now 5 are asked for"):
        shard_here(source, str(shards), per=5)


def test_a_folder_with_something_else_is_left_alone(source: Dataset, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="is not empty and holds no shards"):
        shard_here(source, str(tmp_path))
    assert content(tmp_path) == {"thesis.txt": b"years of work"}


def test_missing_and_broken_images_are_counted_and_stay_what_they_are(
    source: Dataset, tmp_path: Path
) -> None:
    root = tmp_path / "images"
    shutil.copytree(source.root, root)
    (root / "003.jpg").unlink()
    (root / "009.jpg").write_bytes((root / "009.jpg").read_bytes()[:-20])
    data = replace(source, root=str(root))
    written = shard_here(data, str(tmp_path / "out"))
    assert written.unsound == ("003.jpg", "009.jpg")
    back = read_shards(str(tmp_path / "out")).dataset
    with pytest.raises(BadImageError, match=r"003.jpg in .*shard-00000.parquet: empty file"):
        image_pixels(back, 3)
    with pytest.raises(BadImageError, match=r"009.jpg in .*shard-00002.parquet: truncated JPEG"):
        image_pixels(back, 9)


def test_a_changed_byte_in_an_image_is_noticed(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    shutil.copytree(shards, folder)
    back = read_shards(str(folder)).dataset
    assert back.shards is not None
    path = folder / "shard-00001.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[int(back.shards.offset[6]) + 200] ^= 1
    path.write_bytes(damaged)
    image_pixels(back, 5)
    with pytest.raises(BadImageError, match="does not hold the bytes that were stored"):
        image_pixels(back, 6)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("index.json", lambda data: data[: len(data) // 2], "index.json: damaged"),
        ("index.json", lambda data: b"[]", "index.json: damaged"),
        ("index.json", lambda data: data.replace(b'"format": 1', b'"format": 9'), "format 9"),
        (
            "index.json",
            lambda data: data.replace(b'"digest": "', b'"digest": "0'),
            "these shards are of another data set",
        ),
        ("manifest.arrow", lambda data: data[:-9] + b"!" + data[-8:], "does not match its digest"),
    ],
)
def test_damaged_indices_are_refused(
    shards: Path, tmp_path: Path, name: str, change: object, text: str
) -> None:
    folder = tmp_path / "train"
    shutil.copytree(shards, folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=text):
        read_shards(str(folder))


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no shards, there is no index.json"):
        read_shards(str(tmp_path / "nowhere"))


def test_places_and_what_lies_below_them() -> None:
    assert below("data/shards/", "train") == "data/shards/train"
    assert below("s3://b/p?region=x", "train") == "s3://b/p/train?region=x"
    with pytest.raises(ConfigError, match=r"'ftp://h/p' names no place .*; allowed: a path, s3://"):
        open_folder("ftp://h/p")


def test_the_printed_section_can_be_pasted(tmp_path: Path) -> None:
    """Into an experiment whose ``data.root`` is another folder, too."""
    write_coco(tmp_path / "set", 3)
    data = read_coco(tmp_path / "set" / "images", tmp_path / "set" / "instances.json").dataset
    target = str(tmp_path / "out")
    written = {name: shard_here(data, f"{target}/{name}") for name in ("train", "val")}
    section = yaml.safe_load("\n".join(summary(written, target)).partition("\n\n")[2])["data"]
    config = DataConfig.model_validate({"format": "coco", **section})
    for split in (config.train, config.val):
        assert read_split(config, split).dataset.content_digest == data.content_digest
    lines = summary(written, "s3://b/p")
    assert lines[-3:] == ["data:", *(f"  {n}: {{shards: s3://b/p/{n}}}" for n in ("train", "val"))]


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    write_coco(tmp_path / "set", 60)
    annotations = tmp_path / "set" / "annotations"
    annotations.mkdir()
    (tmp_path / "set" / "instances.json").rename(annotations / "instances_train.json")

    def command(out: str) -> subprocess.Popen[str]:
        words = ["shard", "set", out, "--from", "coco", "--images-per-shard", "2"]
        return start(tmp_path, *words, module="orchestrator.cli.main")

    said = finish(command("whole"))
    assert "train: 60 images in 30 shards" in said
    assert "\n  root: whole\n  train: {shards: train}\n" in said
    folder = tmp_path / "broken" / "train"
    # Right after the index, twice in between, and when hardly one is missing. The last of these
    # loses the driver alone, whose workers go on for a while.
    for shards, kill in ((0, kill_tree), (4, kill_tree), (16, kill_tree), (28, lose)):
        process = command("broken")
        wait_for(
            lambda at=shards: len(list(folder.glob("*.parquet"))) >= at, 200, process, every=0.005
        )
        wait_for((folder / "index.json").exists, 200, process, every=0.005)
        kill(process)
        assert not json.loads((folder / "index.json").read_text())["complete"]
        with pytest.raises(DataError, match="the shards are not finished"):
            read_shards(str(folder))
        # What a write leaves that is cut off between two system calls.
        (folder / f"shard-00029.parquet.tmp-{shards}").write_bytes(b"half")
    said = finish(command("broken"))
    found = int(said.split("in 30 shards, ")[1].split()[0])
    assert 28 <= found <= 30
    assert content(folder) == content(tmp_path / "whole" / "train")
    assert read_shards(str(folder)).dataset.digest in said


def lose(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver, and nothing else."""
    process.kill()
    process.wait()
