"""``orchestrator init``: a folder in, an experiment out that runs as it is."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.checkpoints.published import MIRROR
from orchestrator.cli.main import main
from orchestrator.config.resolve import load_experiment
from orchestrator.data.readers.split import read_split
from orchestrator.init.choosing import choose
from orchestrator.init.make import Wanted, look, make
from orchestrator.runs.plan import make_plan
from tests.support import layout_folders
from tests.support.layout_folders import SPLIT, TRAIN, UNSPLIT, VAL
from tests.support.local_runs import train
from tests.support.phone_pictures import BOXES, write_phone
from tests.support.user_command import finish, start


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:9")  # discard: nothing listens there
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("build", [*SPLIT.values(), *UNSPLIT.values()])
def test_every_layout_becomes_an_experiment(
    build: Callable[[Path], None], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "My Set"
    build(folder)
    before = digests(folder)
    source = look(Path("My Set"), Wanted())
    _, told, commands = make(source, Wanted(), "cpu", weights=lambda _: False, command="init")
    assert digests(folder) == before
    assert commands[0] == "orchestrator run my-set.yaml"
    data = load_experiment("my-set.yaml").experiment.data
    parts = [set(read_split(data, part).dataset.files) for part in (data.train, data.val)]
    names = [{Path(file).name for file in part} for part in parts]
    if build in SPLIT.values():
        assert names == [set(TRAIN), set(VAL)]
        (line,) = told
        assert line.startswith("published weights are out of reach, so the run begins with random")
    else:
        assert names[0] | names[1] == set(TRAIN | VAL)
        assert (len(names[0]), len(names[1])) == (10, 2)
        assert told[0].startswith("no split, so one was made (seed 1); images to learn from: 10,")


def test_what_it_writes_trains(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without Ray; the same as `orchestrator run` does, for an epoch."""
    layout_folders.label_studio_coco(here / "set")
    assert main(["init", "set"]) == 0
    printed = capsys.readouterr().out
    assert "set: Label Studio's COCO, 2 classes: cell, plate\n  all: 12 images, 18" in printed
    assert "train: 10 images, 15 boxes, 2 classes, digest" in printed
    assert printed.endswith("orchestrator predict runs/set set/images --draw drawn/\n")
    text = Path("set.yaml").read_text()
    assert "# Made by: orchestrator init set\n" in text
    assert "\n  # init_from: torchvision:mobilenet_v2\n" in text
    assert max(map(len, text.splitlines())) <= 100
    overrides = [
        "train.epochs=2",
        "train.max_steps=2",
        "train.evaluate_every_epochs=2",
        "detector.width=0.1",
    ]
    resolved = load_experiment("set.yaml", [*overrides, "tracking.mlflow=null"])
    run = here / "runs" / "set"
    run.mkdir(parents=True)
    outcome = train(make_plan(resolved, run, threads=1))
    assert outcome.steps == 2
    assert outcome.metrics["AP"] >= 0.0


def test_nothing_is_overwritten_and_one_split_is_one_split(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout_folders.fiftyone(here / "set")
    assert main(["init", "set", "--name", "a", "--seed", "3", "--val", "0.5"]) == 0
    assert main(["init", "set", "--name", "a"]) == 71
    assert "a.yaml exists; nothing is overwritten" in capsys.readouterr().err
    first = Path("a-split/val.json").read_bytes()
    arguments = ["init", "set", "--name", "a", "--seed", "3", "--val", "0.5", "--overwrite"]
    assert main(arguments) == 0
    assert Path("a-split/val.json").read_bytes() == first
    assert main(["init", "set", "--name", "b", "--val", "1.5"]) == 64
    assert main(["init", "nowhere"]) == 65


def test_outlines_become_boxes(here: Path) -> None:
    layout_folders.ultralytics(here / "set")
    for path in (here / "set" / "labels").rglob("*.txt"):
        lines = []
        for line in path.read_text().splitlines():
            label, *values = line.split()
            x, y, w, h = map(float, values)
            # A rhombus that touches each side of the box in its middle.
            corners = ((x - w / 2, y), (x, y - h / 2), (x + w / 2, y), (x, y + h / 2))
            lines.append(" ".join([label, *(str(value) for corner in corners for value in corner)]))
        path.write_text("\n".join(lines))
    wanted = Wanted(task="segment")
    source = look(Path("set"), wanted)
    assert "    outline: 12 the upright box around it" in "\n".join(source.lines())
    make(source, wanted, "cpu", weights=lambda _: True, command="init")
    data = load_experiment("set.yaml").experiment.data
    assert (data.format, data.root) == ("coco", "set-boxes")
    for split, images in ((data.train, TRAIN), (data.val, VAL)):
        read = read_split(data, split).dataset
        boxes = {name: [list(box[1:]) for box in found] for name, found in images.items()}
        assert set(read.files) == boxes.keys()
        for index, file in enumerate(read.files):
            assert read.boxes_xywh[read.boxes_of(index)].round(9).tolist() == boxes[file]


@pytest.mark.parametrize("kind", ["yolo", "coco"])
def test_pictures_of_phones_are_split_with_boxes_where_people_drew_them(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "set").mkdir()
    write_phone(here / "set", 6, kind)
    for name in ("labels", "classes.txt") if kind == "coco" else ():
        path = here / "set" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["init", "set"]) == 0
    printed = capsys.readouterr()
    assert "6 images are to be turned when they are displayed; boxes fit" in printed.out
    assert "which is where they fit" in printed.out
    assert "wrong_" not in printed.out
    data = load_experiment("set.yaml").experiment.data
    assert data.orientation == "displayed"
    found = {}
    for split in (data.train, data.val):
        read = read_split(data, split).dataset
        for index, file in enumerate(read.files):
            found[file] = read.boxes_xywh[read.boxes_of(index)][0].round(9).tolist()
    assert found == {f"{i}.jpg": list(map(float, box)) for i, box in enumerate(BOXES)}


def test_what_boxes_belong_to_can_be_said(here: Path) -> None:
    (here / "set").mkdir()
    write_phone(here / "set", 6)
    assert main(["init", "set", "--orientation", "stored"]) == 0
    assert load_experiment("set.yaml").experiment.data.orientation == "stored"


def test_a_name_that_no_run_can_have_is_refused_before_anything_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout_folders.fiftyone(here / "set")
    assert main(["init", "set", "--name", "Meine Bilder"]) == 64
    assert "Next: --name meine-bilder" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["set"]


def test_one_of_several_coco_files_can_be_named(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layout_folders.cvat_coco(here / "set")
    first = here / "set" / "annotations" / "instances_default.json"
    first.with_name("instances_other.json").write_bytes(first.read_bytes())
    assert main(["init", "set"]) == 65
    error = capsys.readouterr().err
    step = "`orchestrator init set/annotations/instances_default.json` splits the images of that"
    assert step in error
    assert main(["init", "set/annotations/instances_default.json", "--name", "a"]) == 0
    assert "images to learn from: 10, to evaluate on: 2" in capsys.readouterr().out
    first.write_text("{}")
    assert main(["init", str(first), "--name", "b"]) == 65
    assert "names no images by file_name" in capsys.readouterr().err


def test_weights_that_can_be_had_are_in_the_file(here: Path) -> None:
    layout_folders.coco_2017(here / "set")
    source = look(Path("set"), Wanted())
    make(source, Wanted(), "cpu", weights=lambda _: True, command="init")
    experiment = load_experiment("set.yaml").experiment
    assert experiment.train.init_from == "torchvision:mobilenet_v2"
    assert getattr(experiment.detector, "width", None) == 1.0


def test_the_detector_follows_boxes_and_machine(here: Path) -> None:
    layout_folders.coco_2017(here / "set")
    data = look(Path("set"), Wanted()).read["train2017"].dataset
    choice = choose(data, "cpu", weights=False)
    # A box of 16 x 12 in 64 x 32 is 75 x 112 in 300 x 300, as the first priors of SSD are.
    assert choice.recipe.detector["variant"] == "ssd300_mobilenet_v2"
    assert (choice.batch_size, choice.epochs) == (4, 300)
    assert choice.steps == 300 * 2
    gpu = choose(data, "gpu", weights=True)
    assert (gpu.recipe.detector["variant"], gpu.recipe.weights) == (
        "ssd300_vgg16",
        "torchvision:ssd300_vgg16",
    )
    # Boxes of 4 x 3 in pictures of 640 x 480 are smaller than any prior of one stage.
    tiny = type(data)(
        **{
            **{name: getattr(data, name) for name in data.__dataclass_fields__},
            "widths": np.full(len(data), 640, dtype=np.int32),
            "heights": np.full(len(data), 480, dtype=np.int32),
            "boxes_xywh": data.boxes_xywh * (0.5, 0.5, 0.9, 1.2),
        }
    )
    fitted = choose(tiny, "gpu", weights=False)
    assert fitted.recipe.detector["name"] == "faster_rcnn"
    assert fitted.recall is not None
    assert fitted.recall > (choose(tiny, "cpu", weights=False).recall or 0.0)


@pytest.mark.slow
@pytest.mark.ray
def test_three_commands_from_a_folder_to_pictures(here: Path) -> None:
    layout_folders.roboflow_yolo(here / "set")
    finish(start(here, "init", "set", module="orchestrator.cli.main"))
    short = ["train.epochs=2", "train.evaluate_every_epochs=2", "detector.width=0.1"]
    finish(start(here, "run", "set.yaml", *short, module="orchestrator.cli.main"))
    command = ["predict", "runs/set", "set/valid/images", "--draw", "drawn/"]
    finish(start(here, *command, module="orchestrator.cli.main"))
    assert len(list((here / "drawn").iterdir())) == len(VAL)
