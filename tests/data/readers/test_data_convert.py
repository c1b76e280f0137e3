from __future__ import annotations

import argparse
import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cli._shared.source import decoding_lines, read_source
from orchestrator.cli.main import main
from orchestrator.config.schema import DataConfig
from orchestrator.data.dataset import Dataset
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.readers.convert import convert, read_place, read_places
from orchestrator.data.readers.writers import WRITERS, usual_place
from orchestrator.errors import DataError, StorageError
from orchestrator.layouts.layout import FORMATS, Place
from orchestrator.layouts.recognise import find_layout
from tests.support.data_cases import textured, write_coco, write_image
from tests.support.shard_cases import shard_here

SHARED = Path(__file__).parents[4] / "shared" / "datasets"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Nine images with random boxes, one image without, one below a folder with a blank."""
    folder = tmp_path_factory.mktemp("source")
    write_coco(folder, 9, seed=3)
    tree = json.loads((folder / "instances.json").read_text())
    tree["annotations"] = [a for a in tree["annotations"] if a["image_id"] != 104]
    for annotation in tree["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    (folder / "images" / "my dir").mkdir()
    (folder / "images" / "001.jpg").rename(folder / "images" / "my dir" / "Ä & <b>.jpg")
    tree["images"][1]["file_name"] = "my dir/Ä & <b>.jpg"
    (folder / "instances.json").write_text(json.dumps(tree))
    return Place(folder / "images", folder / "instances.json")


def read_folder(root: Path, kind: str, split: str = "train") -> Dataset:
    """What the reader of a format finds in a converted folder."""
    from orchestrator.data.readers.classes import read_classes

    classes = None if kind == "coco" else read_classes(root / "classes.txt")
    return read_place(kind, find_layout(root, kind).splits[split], classes).dataset


def classes_of(root: Path, kind: str) -> Path | None:
    return None if kind == "coco" else root / "classes.txt"


def test_one_data_set_has_one_digest_in_all_formats(source: Place, tmp_path: Path) -> None:
    original = read_coco(source.images, source.annotations).dataset
    for kind in FORMATS:
        convert(read_places("coco", {"train": source}, None), kind, tmp_path / kind)
        data = read_folder(tmp_path / kind, kind)
        assert data.content_digest == original.content_digest
        assert data.boxes_xywh.tolist() == original.boxes_xywh.tolist()
        assert data.labels.tolist() == original.labels.tolist()
        assert data.files == original.files
        assert data.path(1).read_bytes() == original.path(1).read_bytes()
    for kind, other in itertools.permutations(FORMATS, 2):
        root = tmp_path / f"{kind}-{other}"
        places = find_layout(tmp_path / kind, kind).splits
        convert(
            read_places(kind, places, classes_of(tmp_path / kind, kind)), other, root, link=True
        )
        assert read_folder(root, other).content_digest == original.content_digest


@pytest.mark.parametrize("kind", FORMATS)
def test_blanks_in_names_of_images_survive(kind: str, tmp_path: Path) -> None:
    write_coco(tmp_path / "source", 3)
    place = Place(tmp_path / "source" / "images", tmp_path / "source" / "instances.json")
    for number, path in enumerate(sorted(place.images.iterdir())):
        named = path.with_name(f"frame {number}.jpg")
        place.annotations.write_text(place.annotations.read_text().replace(path.name, named.name))
        path.rename(named)
    read = read_places("coco", {"train": place}, None)
    convert(read, kind, tmp_path / "out")
    back = read_folder(tmp_path / "out", kind)
    assert back.content_digest == read["train"].dataset.content_digest


def test_digest_sees_every_change(source: Place) -> None:
    data = read_coco(source.images, source.annotations).dataset
    nudged = data.boxes_xywh.copy()
    nudged[3, 2] = np.nextafter(nudged[3, 2], 100)
    names = LabelMap(("one", "zwei"), data.label_map.ids)
    changed = [
        replace(data, boxes_xywh=nudged),
        replace(data, labels=1 - data.labels),
        replace(data, crowd=~data.crowd),
        replace(data, widths=data.widths + 1),
        replace(data, files=("x.jpg", *data.files[1:])),
        replace(data, label_map=names),
        replace(data, offsets=np.sort(np.append(data.offsets[:-2], [0, data.offsets[-1]]))),
    ]
    assert len({data.content_digest, *(one.content_digest for one in changed)}) == 8
    same = replace(
        data,
        image_ids=data.image_ids + 7,
        label_map=LabelMap(data.label_map.names, (5, 9)),
        areas=data.areas * 2,
        files=tuple(f"x/../{file}" for file in data.files),
    )
    assert same.content_digest == data.content_digest


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(
        st.tuples(
            st.floats(0, 39.9, allow_subnormal=False),
            st.floats(0, 29.9, allow_subnormal=False),
            st.floats(0.001, 20),
            st.floats(1.5, 20),  # Boxes within the first pixel are refused.
            st.integers(0, 1),
        ),
        min_size=1,
        max_size=5,
        # Of equal boxes one is dropped.
        unique_by=lambda box: tuple(round(value, 3) for value in box),
    ),
    kind=st.sampled_from(FORMATS),
)
def test_no_bit_of_a_coordinate_is_lost(
    boxes: list[tuple[float, ...]], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    place = usual_place(folder, kind, "train", own_folder=False)
    write_image(place.images / "a.png", textured(30, 40, 0))
    # Nearer to the edge than pixels are rounded to, a coordinate is that edge.
    xywh = np.array([box[:4] for box in boxes])
    xywh[:, :2][xywh[:, :2] < 1e-12] = 0
    data = Dataset(
        label_map=LabelMap(("a", "b"), (0, 1)),
        root=str(place.images),
        files=("a.png",),
        image_ids=np.array([1]),
        widths=np.array([40], np.int32),
        heights=np.array([30], np.int32),
        offsets=np.array([0, len(boxes)]),
        boxes_xywh=xywh,
        labels=np.array([box[4] for box in boxes]),
        areas=xywh[:, 2] * xywh[:, 3],
        crowd=np.zeros(len(boxes), bool),
    )
    WRITERS[kind](data, place)
    back = read_place(kind, place, data.label_map).dataset
    assert back.boxes_xywh.tolist() == xywh.tolist()
    assert back.labels.tolist() == data.labels.tolist()


@pytest.mark.parametrize("kind", ["coco", "voc", "txt"])
def test_crowds_survive_where_they_can(kind: str, source: Place, tmp_path: Path) -> None:
    tree = json.loads(source.annotations.read_text())
    tree["annotations"][4]["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(tree))
    place = Place(source.images, tmp_path / "crowd.json")
    convert(read_places("coco", {"train": place}, None), kind, tmp_path / kind)
    assert read_folder(tmp_path / kind, kind).crowd.nonzero()[0].tolist() == [4]


def test_crowds_are_not_dropped_in_silence(source: Place, tmp_path: Path) -> None:
    tree = json.loads(source.annotations.read_text())
    tree["annotations"][4]["iscrowd"] = 1
    (tmp_path / "crowd.json").write_text(json.dumps(tree))
    places = {"train": Place(source.images, tmp_path / "crowd.json")}
    with pytest.raises(DataError, match=r"1 crowd \(or difficult\) boxes.*\n.*--drop-crowd"):
        convert(read_places("coco", places, None), "yolo", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "crowd.json"]
    convert(read_places("coco", places, None), "yolo", tmp_path / "out", drop_crowd=True)
    data = read_folder(tmp_path / "out", "yolo")
    original = read_coco(source.images, source.annotations).dataset
    assert data.boxes_xywh.tolist() == np.delete(original.boxes_xywh, 4, axis=0).tolist()


def test_splits_with_their_own_images_keep_them_apart(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("val", 2)):
        write_coco(tmp_path / split, 3, seed=seed)
    places = {
        split: Place(tmp_path / split / "images", tmp_path / split / "instances.json")
        for split in ("train", "val")
    }
    for kind in FORMATS:
        out = tmp_path / kind
        converted = convert(read_places("coco", places, None), kind, out, link=True)
        for split, place in places.items():
            original = read_coco(place.images, place.annotations).dataset
            data = read_folder(out, kind, split)
            assert data.content_digest == original.content_digest
            assert data.root == str(converted[split].place.images)
            assert data.path(0).read_bytes() == original.path(0).read_bytes()


def test_what_a_format_has_no_place_for_is_named(source: Place, tmp_path: Path) -> None:
    converted = convert(read_places("coco", {"train": source}, None), "txt", tmp_path / "txt")[
        "train"
    ]
    assert [lost.split(":")[0] for lost in converted.lost] == ["ids of images", "ids of classes"]
    assert (
        convert(read_places("coco", {"train": source}, None), "coco", tmp_path / "c")["train"].lost
        == ()
    )


def broken(source: Place, folder: Path, **values: object) -> Place:
    """The source with values of its first image changed."""
    tree = json.loads(source.annotations.read_text())
    tree["images"][0].update(values)
    (folder / "instances.json").write_text(json.dumps(tree))
    return Place(source.images, folder / "instances.json")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            "txt",
            {"width": 99},
            r"train: txt cannot hold .*: 000\.jpg is annotated with width 99, b",
        ),
        ("yolo", {"file_name": "x.jpg"}, r"1 images are left out, such as x\.jpg"),
        ("txt", {"file_name": "x.jpg"}, r"1 images are left out, such as x\.jpg"),
        ("voc", {"file_name": "002.png"}, r"002\.jpg and 002\.png would share the XML file 002"),
        ("yolo", {"file_name": "002.png"}, r"002\.jpg and 002\.png would share the label file 00"),
        (
            "voc",
            {"file_name": " 2.jpg"},
            r"voc cannot hold .*; of the result: .*\n  train\.txt:1: ",
        ),
        ("txt", {"file_name": "a\nb.jpg"}, r"'a\\nb.jpg' has an end of a line in it, and txt"),
    ],
)
def test_what_cannot_be_held_is_refused(
    kind: str, values: dict[str, object], message: str, source: Place, tmp_path: Path
) -> None:
    place = broken(source, tmp_path, **values)
    with pytest.raises(DataError, match=message):
        convert(read_places("coco", {"train": place}, None), kind, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_that_is_no_text_is_digested_and_not_converted(
    source: Place, tmp_path: Path
) -> None:
    (read,) = read_places("coco", {"train": source}, None).values()
    files = ["stra\udcdfe.jpg", *read.dataset.files[1:]]
    named = replace(read, dataset=replace(read.dataset, files=files))
    assert named.dataset.content_digest != read.dataset.content_digest
    with pytest.raises(DataError, match=r"'stra\\udcdfe.jpg' is no UTF-8 text, and coco cannot"):
        convert({"train": named}, "coco", tmp_path / "out")


def test_class_names_that_a_list_cannot_hold_are_refused(tmp_path: Path, source: Place) -> None:
    tree = json.loads(source.annotations.read_text())
    tree["categories"][0]["name"] = "background"
    (tmp_path / "a.json").write_text(json.dumps(tree))
    places = {"train": Place(source.images, tmp_path / "a.json")}
    with pytest.raises(
        DataError, match="classes background, two would be read back from a list as two"
    ):
        convert(read_places("coco", places, None), "yolo", tmp_path / "out")


def test_nothing_is_overwritten(source: Place, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="out exists; name a folder that does not"):
        convert(read_places("coco", {"train": source}, None), "txt", tmp_path / "out")


def test_command_converts_there_and_back(
    source: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "e.yaml"
    experiment.write_text(
        "name: e\ndetector: {name: ssd}\ndata:\n  root: elsewhere\n"
        "  train: {images: images, annotations: instances.json}\n"
        "  val: {images: images, annotations: instances.json}\n"
        "train: {epochs: 1, batch_size: 1, optimizer: {name: sgd, lr: 0.1}}\n"
    )
    out, back = tmp_path / "voc", tmp_path / "coco"
    command = ["convert", "data", str(experiment), str(out), "--to", "voc"]
    assert main(command) == 65
    assert main([*command, f"data.root={source.images.parent}"]) == 0
    printed = capsys.readouterr().out
    digest = read_coco(source.images, source.annotations).dataset.content_digest
    assert printed.count(f"digest of classes, images, boxes and labels {digest}") == 2
    assert printed.splitlines()[-5:] == [
        "data:",
        "  format: voc",
        f"  root: {out}",
        "  train: {images: JPEGImages, annotations: ImageSets/Main/train.txt}",
        "  val: {images: JPEGImages, annotations: ImageSets/Main/val.txt}",
    ]
    arguments = ["convert", "data", str(out), "--from", "voc", "--to", "coco", str(back)]
    assert main([*arguments, "--split", "val"]) == 0
    assert read_folder(back, "coco", "val").content_digest == digest


#: Settings of ``data`` that say how files are read, and their part of a read data set.
HOW_READ = {
    "max_pixels": 200_000_000,
    "levels": (0, 4095),
    "orientation": "displayed",
}


@pytest.mark.parametrize("key", HOW_READ)
@pytest.mark.parametrize("sharded_as_well", [False, True])
def test_an_experiment_is_read_as_a_run_reads_it_but_from_its_files(
    key: str, sharded_as_well: bool, source: Place, tmp_path: Path
) -> None:
    value = HOW_READ[key]
    files = {"images": "images", "annotations": "instances.json"}
    split = {**files, "shards": "not there yet"} if sharded_as_well else files
    tree = {
        "name": "e",
        "detector": {"name": "ssd"},
        "data": {"root": str(source.images.parent), "train": split, "val": split, key: value},
        "train": {"epochs": 1, "batch_size": 1, "optimizer": {"name": "sgd", "lr": 0.1}},
    }
    (tmp_path / "e.yaml").write_text(json.dumps(tree))
    arguments = argparse.Namespace(
        source=tmp_path / "e.yaml",
        overrides=[],
        kind=None,
        split=[],
        classes=None,
        orientation=None,
    )
    results = read_source(arguments, from_files=True)
    assert list(results) == ["train", "val"]
    for result in results.values():
        assert getattr(result.dataset.decoding, key) == value
        assert result.dataset.in_folder


@pytest.mark.parametrize("key", HOW_READ)
def test_the_lines_that_read_a_result_have_what_decides_over_pixels(
    key: str, source: Place, tmp_path: Path
) -> None:
    data = read_coco(source.images, source.annotations).dataset
    assert decoding_lines(data) == []
    (line,) = decoding_lines(replace(data, decoding=replace(data.decoding, **{key: HOW_READ[key]})))
    section = {"root": ".", "train": {"shards": "a"}, "val": {"shards": "b"}}
    section |= yaml.safe_load(line)
    config = DataConfig.model_validate_json(json.dumps(section))
    assert getattr(config, key) == HOW_READ[key]


SHARDED = """
name: e
detector: {name: ssd}
data:
  root: %s
  train: {shards: shards/train}
  val: {shards: shards/val}
train: {epochs: 1, batch_size: 1, optimizer: {name: sgd, lr: 0.1}}
"""


@pytest.fixture
def sharded(source: Place, tmp_path: Path) -> Dataset:
    """What ``e.yaml`` names as shards, for both splits; one of its images was missing."""
    images = tmp_path / "source"
    shutil.copytree(source.images, images)
    (images / "003.jpg").unlink()
    data = read_coco(images, source.annotations).dataset
    for split in ("train", "val"):
        shard_here(data, str(tmp_path / "shards" / split))
    (tmp_path / "e.yaml").write_text(SHARDED % tmp_path)
    return data


@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_command_makes_files_of_shards(kind: str, sharded: Dataset, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["convert", "data", str(tmp_path / "e.yaml"), str(out), "--to", kind]) == 0
    for split in ("train", "val"):
        data = read_folder(out, kind, split)
        assert data.content_digest == sharded.content_digest
        for index, file in enumerate(data.files):
            if file == "003.jpg":
                assert not data.path(index).exists()
            else:
                assert data.path(index).read_bytes() == sharded.path(index).read_bytes()


def test_shards_that_cannot_become_files(
    sharded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", "data", str(tmp_path / "e.yaml"), str(tmp_path / "out"), "--to"]
    assert main([*command, "coco", "--link"]) == 64
    assert "--link: images in shards or a bucket are no files" in capsys.readouterr().err
    # TXT needs the size of an image, which is not there.
    assert main([*command, "txt"]) == 65
    assert "1 images are left out, such as 003.jpg" in capsys.readouterr().err
    path = tmp_path / "shards" / "train" / "shard-00000.parquet"
    image = sharded.path(0).read_bytes()
    content = path.read_bytes()
    assert content.count(image) == 1
    path.write_bytes(content.replace(image, image[:-1] + b"!"))
    assert main([*command, "coco"]) == 65
    assert "000.jpg in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_are_not_written_from_shards(
    sharded: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shard", str(tmp_path / "e.yaml"), str(tmp_path / "out")]) == 64
    assert "data.train: names shards alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["SRC", "OUT", "--to", "voc"], "SRC: no such folder", 65),
        (["SRC", "OUT", "--to", "vok"], "invalid choice: 'vok'", 64),
        (["e.yaml", "OUT", "--to", "voc", "--from", "coco"], "says --from, --split", 64),
        (["SRC", "OUT", "--to", "voc", "data.root=x"], "are for an experiment file", 64),
        (["SRC", "OUT", "--to", "voc", "--from", "yolo"], "SRC: no such folder", 65),
    ],
)
def test_command_says_what_is_wrong(
    arguments: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "data", *arguments]) == code
    assert message in capsys.readouterr().err


def test_bccd_in_its_original_layout(tmp_path: Path) -> None:
    folder = SHARED / "bccd"
    if not folder.is_dir():
        pytest.skip("bccd is not here")
    places = find_layout(folder, "coco").splits
    convert(read_places("coco", places, None), "voc", tmp_path / "voc")
    voc = find_layout(tmp_path / "voc", "voc").splits
    classes = tmp_path / "voc" / "classes.txt"
    convert(read_places("voc", voc, classes), "coco", tmp_path / "coco", link=True)
    for split, place in places.items():
        original = read_coco(place.images, place.annotations).dataset
        assert read_folder(tmp_path / "voc", "voc", split).content_digest == original.content_digest
        assert read_folder(tmp_path / "coco", "coco", split).digest != original.digest
    xml = (tmp_path / "voc" / "Annotations" / "BloodImage_00001.xml").read_text()
    assert "<xmin>69</xmin>" in xml  # 68 in COCO, whose first pixel is 0


def test_coco_with_crowds_and_empty_images(tmp_path: Path) -> None:
    folder = SHARED / "coco_mini_open"
    if not folder.is_dir():
        pytest.skip("coco_mini_open is not here")
    places = find_layout(folder, "coco").splits
    for kind in ("voc", "txt"):
        convert(read_places("coco", places, None), kind, tmp_path / kind, link=False)
        for split, place in places.items():
            original = read_coco(place.images, place.annotations).dataset
            assert original.crowd.any() or split != "train"
            data = read_folder(tmp_path / kind, kind, split)
            assert data.content_digest == original.content_digest
