"""Folders as annotation tools export them: each is recognised, and read box by box."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import load_experiment
from orchestrator.data.dataset import Dataset
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.convert import read_places
from orchestrator.data.readers.split import read_split
from orchestrator.errors import ConfigError, DataError
from orchestrator.layouts.recognise import classes_beside, find_layout
from tests.support import layout_folders
from tests.support.layout_folders import NAMES, SPLIT, TRAIN, UNSPLIT, VAL, Truth, experiment_on

SHARED = Path(__file__).parents[3] / "shared" / "cases"


def content(data: Dataset) -> Truth:
    """Every image by its base name, with its boxes in the order of their labels."""
    assert data.label_map.names == NAMES
    return {
        Path(file).name: sorted(
            (int(label), *map(int, box))
            for label, box in zip(
                data.labels[data.boxes_of(index)],
                data.boxes_xywh[data.boxes_of(index)],
                strict=True,
            )
        )
        for index, file in enumerate(data.files)
    }


@pytest.mark.parametrize(("title", "build"), SPLIT.items())
def test_root_alone_stands_for_both_splits(
    title: str, build: Callable[[Path], None], tmp_path: Path
) -> None:
    root = tmp_path / "set"
    build(root)
    layout = find_layout(root)
    assert layout.title == title
    resolved = load_experiment(experiment_on(tmp_path, f"{{root: {root}}}"))
    data = resolved.experiment.data
    for split, expected in ((data.train, TRAIN), (data.val, VAL)):
        assert content(read_split(data, split).dataset) == expected
    assert resolved.origins["data.val.annotations"] == f"found in {root}"
    # Frozen: what was found is in the resolved file and no longer looked for.
    frozen = tmp_path / "frozen.yaml"
    frozen.write_text(dump_yaml(resolved))
    assert load_experiment(frozen).digest == resolved.digest
    assert load_experiment(frozen, ["data.root=elsewhere"]).experiment.data.val == data.val


@pytest.mark.parametrize(("title", "build"), UNSPLIT.items())
def test_folder_without_splits_is_read_whole(
    title: str, build: Callable[[Path], None], tmp_path: Path
) -> None:
    root = tmp_path / "set"
    build(root)
    layout = find_layout(root)
    assert (layout.title, layout.pair()) == (title, None)
    (read,) = read_places(layout.kind, layout.splits, layout.classes).values()
    assert content(read.dataset) == TRAIN | VAL
    with pytest.raises(DataError, match=f"orchestrator init {root}"):
        load_experiment(experiment_on(tmp_path, f"{{root: {root}}}"))


def capitalised(text: str) -> str:
    return re.sub(r"(?<![a-z])(train|valid|val)(?![a-z0-9])", lambda m: m[1].capitalize(), text)


@pytest.mark.parametrize("title", SPLIT)
def test_capitals_in_names_of_splits_do_not_matter(title: str, tmp_path: Path) -> None:
    SPLIT[title](tmp_path)
    # What lies deepest first, so that no path changes before it is used.
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        if path.suffix in (".txt", ".yaml", ".data"):
            path.write_text(capitalised(path.read_text()))
        path.rename(path.with_name(capitalised(path.name)))
    layout = find_layout(tmp_path)
    assert layout.title == title
    pair = layout.pair()
    assert pair is not None
    read = read_places(layout.kind, layout.splits, layout.classes)
    assert [content(read[name].dataset) for name in pair] == [TRAIN, VAL]


@pytest.mark.parametrize("build", [*SPLIT.values(), *UNSPLIT.values()])
def test_hidden_files_are_in_no_layout(build: Callable[[Path], None], tmp_path: Path) -> None:
    root = tmp_path / "set"
    build(root)
    before = find_layout(root)
    for path in [path for path in sorted(root.rglob("*")) if path.is_file()]:
        below = path.relative_to(root)
        for copy in (
            path.with_name(f"._{path.name}"),
            path.parent / ".ipynb_checkpoints" / f"{path.stem}-checkpoint{path.suffix}",
            root / "__MACOSX" / below,
            root / ".old" / below,
        ):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    layout = find_layout(root)
    assert layout == before
    read = read_places(layout.kind, layout.splits, layout.classes)
    found = [content(one.dataset) for one in read.values()]
    assert found == ([TRAIN, VAL] if len(read) == 2 else [TRAIN | VAL])
    assert not [finding for one in read.values() for finding in one.findings]


@pytest.mark.parametrize(
    ("names", "splits", "note"),
    [
        (["day1", "day2"], ["all"], "both have day1, day2: read as one, being no usual names of"),
        (["Train", "VAL", "day2"], ["train", "val"], "both have day2: not read, being no usual"),
        (["train", "Train", "val"], ["train", "val"], "both have Train: not read"),
        (["train", "val"], ["train", "val"], None),
    ],
)
def test_folders_that_are_no_split_are_said(
    names: list[str], splits: list[str], note: str | None, tmp_path: Path
) -> None:
    for name in names:
        layout_folders.draw(tmp_path / "images" / name, VAL)
        layout_folders.yolo(tmp_path / "labels" / name, VAL)
    layout = find_layout(tmp_path)
    assert list(layout.splits) == splits
    assert [note in one for one in layout.notes if note] == ([True] if note else [])


@pytest.mark.parametrize(
    ("train", "valid", "names"),
    [
        ("cell\n", "cell\nplate\n", ("cell", "plate")),
        ("cell\nplate\nrod\n", "cell\nplate\n", ("cell", "plate", "rod")),
        ("plate\ncell\n", "cell\nplate\n", None),
    ],
)
@pytest.mark.parametrize("below", ["{}", "{}/labels", "labels/{}"])
def test_classes_of_each_split_are_one_list(
    below: str, train: str, valid: str, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    for split, text in (("train", train), ("valid", valid)):
        layout_folders.write(tmp_path / below.format(split) / "classes.txt", text)
    if names is None:
        with pytest.raises(DataError, match=r"classes\.txt name different classes") as caught:
            classes_beside(tmp_path)
        assert f"put their list into {tmp_path} as classes.txt" in str(caught.value)
        (tmp_path / "classes.txt").write_text("cell\n")
        names = ("cell",)
    assert read_classes(classes_beside(tmp_path)).names == names


@pytest.mark.parametrize("caption", ["a cell on a plate", "1 cell and 2 plates", ""])
def test_texts_beside_images_need_not_be_labels(caption: str, tmp_path: Path) -> None:
    layout_folders.draw(tmp_path, TRAIN)
    for name in TRAIN:
        (tmp_path / name).with_suffix(".txt").write_text(caption)
    with pytest.raises(DataError, match=r"no known layout|no data set that is read"):
        find_layout(tmp_path)
    # An image without objects has an empty file.
    (tmp_path / "p007.txt").write_text("0 .5 .5 .5 .5\n")
    if not caption:
        assert find_layout(tmp_path).title == "YOLO, labels beside the images"


def test_lists_of_cvat_begin_with_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for split, images in (("Train", TRAIN), ("Validation", VAL)):
        layout_folders.draw(tmp_path / "images" / split, images)
        layout_folders.yolo(tmp_path / "labels" / split, images)
        lines = [f"data/images/{split}/{name}\n" for name in images]
        layout_folders.write(tmp_path / f"{split}.txt", "".join(lines))
    places = "Train: Train.txt\nValidation: Validation.txt\npath: .\n"
    layout_folders.write(tmp_path / "data.yaml", f"{places}names: {{0: cell, 1: plate}}\n")
    layout = find_layout(tmp_path)
    read = read_places(layout.kind, layout.splits, layout.classes)
    assert {name: content(one.dataset) for name, one in read.items()} == {
        "train": TRAIN,
        "val": VAL,
    }


def test_a_data_yaml_stands_for_its_folder_wherever_it_lies(tmp_path: Path) -> None:
    layout_folders.ultralytics(tmp_path / "set")
    text = (tmp_path / "set" / "dataset.yaml").read_text().replace("somewhere/else", "../set")
    (tmp_path / "yamls").mkdir()
    (tmp_path / "yamls" / "a.yaml").write_text(text)
    file = experiment_on(tmp_path, f"{{root: {tmp_path}/yamls/a.yaml}}")
    data = load_experiment(file).experiment.data
    assert data.root == str(tmp_path / "set")
    assert content(read_split(data, data.val).dataset) == VAL


def test_convert_needs_no_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout_folders.cvat_yolo(tmp_path / "set")
    assert main(["convert", "data", str(tmp_path / "set"), str(tmp_path / "out"), "--to=coco"]) == 0
    assert "train: 8 images, 12 boxes" in capsys.readouterr().out
    layout = find_layout(tmp_path / "out")
    read = read_places("coco", layout.splits, None)
    assert content(read["train"].dataset) == TRAIN


def test_train_and_val_of_one_folder_are_no_two_splits(tmp_path: Path) -> None:
    layout_folders.label_studio_yolo(tmp_path)
    text = "train: images\nval: images\nnames: [cell, plate]\n"
    (tmp_path / "data.yaml").write_text(text)
    assert find_layout(tmp_path).pair() is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nnames: {1: cell, 2: plate}\n", "names has the numbers 1, 2"),
        ("train: images\nnc: 3\nnames: [cell, plate]\n", "nc is 3, but names has 2"),
        ("train: images\nnames: [cell, cell]\n", "'cell' twice"),
        ("train: images\nnames: cell\n", "no list of classes"),
        ("train: [images, labels]\nnames: [cell]\n", "train names 2 places"),
        ("a: [", "cannot be read as YAML"),
        ("[1]", "is no mapping"),
    ],
)
def test_data_yaml_says_what_is_wrong(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        find_layout(file)


def test_names_stay_text(tmp_path: Path) -> None:
    layout_folders.roboflow_yolo(tmp_path)
    text = (tmp_path / "data.yaml").read_text().replace("['cell', 'plate']", "[no, 007]")
    (tmp_path / "data.yaml").write_text(text)
    layout = find_layout(tmp_path)
    read = read_places(layout.kind, layout.splits, layout.classes)
    assert read["val"].dataset.label_map.names == ("no", "007")


def test_unknown_folder_names_what_was_looked_for(tmp_path: Path) -> None:
    layout_folders.voc_published(tmp_path / "kit" / "set")
    with pytest.raises(DataError, match="looked for") as caught:
        find_layout(tmp_path / "kit")
    assert "Annotations/*.xml with JPEGImages" in str(caught.value)
    assert f"did you mean {tmp_path}/kit/set, which is Pascal VOC?" in str(caught.value)
    assert main(["config", "show", str(experiment_on(tmp_path, f"{{root: {tmp_path}/kit}}"))]) == 65
    # With other mistakes, all of these are said first.
    with pytest.raises(ConfigError, match=r"data\.prefetch: found 0") as refused:
        load_experiment(experiment_on(tmp_path, f"{{root: {tmp_path}/kit, prefetch: 0}}"))
    assert "1 problem\n" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "title", "images"),
    [
        ("ultralytics", "YOLO with data.yaml", {"train": 12, "val": 6}),
        ("roboflow_yolo", "Roboflow's YOLO with data.yaml", {"train": 12, "val": 6}),
        ("roboflow_coco", "Roboflow's COCO", {"train": 8, "valid": 4, "test": 4}),
        ("label_studio", "Label Studio's COCO", {"all": 8}),
        ("fiftyone", "FiftyOne's COCO", {"all": 8}),
    ],
)
def test_exports_as_they_are(name: str, title: str, images: dict[str, int]) -> None:
    if not SHARED.is_dir():
        pytest.skip("the folder of cases is not here")
    layout = find_layout(SHARED / name)
    read = read_places(layout.kind, layout.splits, layout.classes)
    assert layout.title == title
    assert {split: len(one.dataset) for split, one in read.items()} == images
    assert {one.dataset.label_map.names for one in read.values()} == {("cell", "plate")}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "annotations.xml",
            '<?xml version="1.0"?>\n<annotations>\n<image id="0" name="p000.jpg"></image>\n'
            "</annotations>\n",
            r"CVAT's own XML.*\n?.*export the task as COCO 1\.0 or YOLO 1\.1",
        ),
        (
            "project-1.json",
            '[{"id": 1, "data": {"image": "/data/p000.jpg"}, "annotations": []}]',
            "looks like Label Studio's own JSON.*export the project as COCO or YOLO",
        ),
    ],
)
def test_forms_that_tools_keep_for_themselves_are_told_apart(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    layout_folders.draw(tmp_path / "images", TRAIN)
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        find_layout(tmp_path)


#: What lies where no data set is that is read, as files with their text; what is said.
NOT_READ = {
    "LabelMe": (
        {"images/p000.json": '{"version": "5", "shapes": [], "imagePath": "p000.jpg"}'},
        "images/p000.json, LabelMe's JSON, which is not read. Next: export",
    ),
    "a table": (
        {"train/_annotations.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\n"},
        "train/_annotations.csv, a table of boxes, which is not read. Next: export",
    ),
    "Create ML": ({"train/_annotations.createml.json": "[]"}, "boxes for Create ML, which is"),
    "TFRecord": ({"train/cells.tfrecord": ""}, "train/cells.tfrecord, a TFRecord, which is not"),
    "images alone": ({}, "found images and no boxes. Next: draw boxes"),
    "classification": (
        {"train/cat/1.jpg": "", "train/dog/1.jpg": ""},
        "found images in folders, as for classification, and no boxes",
    ),
    "a table of something else": ({"results.csv": "epoch,loss\n"}, "looked for\n"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_what_is_no_data_set_is_told_with_the_next_step(name: str, tmp_path: Path) -> None:
    files, message = NOT_READ[name]
    layout_folders.draw(tmp_path / "set" / "images", TRAIN)
    for place, text in files.items():
        layout_folders.write(tmp_path / "set" / place, text)
    with pytest.raises(DataError, match=re.escape(message)):
        find_layout(tmp_path / "set")


def test_what_is_no_folder_is_told_with_the_next_step(tmp_path: Path) -> None:
    archive, picture, empty = tmp_path / "set.zip", tmp_path / "a.jpg", tmp_path / "empty"
    archive.write_bytes(b"PK")
    picture.write_bytes(b"")
    empty.mkdir()
    for path, message in (
        (archive, "is an archive. Next: unpack it"),
        (picture, "is a file. Next: name the folder"),
        (empty, "the folder is empty. Next: name the one"),
        (tmp_path / "gone", "no such folder"),
    ):
        with pytest.raises(DataError, match=message):
            find_layout(path)
    archive.rename(empty / "set.zip")
    with pytest.raises(DataError, match=r"found set\.zip\. Next: unpack it"):
        find_layout(empty)
