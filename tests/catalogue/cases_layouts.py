"""Layouts of YOLO: a ``data.yaml`` that is none, or says what cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cases_images import PNG
from catalogue_case import Case, Verdict

from orchestrator.data.findings import ReadResult
from orchestrator.data.readers.convert import read_places
from orchestrator.layouts.recognise import find_layout

DATA_YAML = """\
path: .
train: images/train
val: list.txt
test:
nc: 2
names:
  0: cat
  1: dog
"""
#: Content in place of some of it, the place that is named, and what is said.
YAMLS: dict[str, tuple[str, str, str, str]] = {
    "key twice": (
        "nc: 2",
        "train: images/val",
        "data.yaml:5:1",
        "'train' stands in line 2 already",
    ),
    "number twice": ("1: dog", "0: dog", "data.yaml:8:3", "'0' stands in line 7 already"),
    "null as a class": ("1: dog", "1: ~", "data.yaml", "twice, or empty"),
    "a class without a name": ("1: dog", "1:", "data.yaml", "twice, or empty"),
    "one name twice": ("1: dog", "1: cat", "data.yaml", "has 'cat' twice"),
    "numbers from one": ("  0: cat", "  2: cat", "data.yaml", "names has the numbers 2, 1"),
    "another count": ("nc: 2", "nc: 3", "data.yaml", "nc is 3, but names has 2"),
    "a count with a point": ("nc: 2", "nc: 3.0", "data.yaml", "nc is 3.0"),
    "half a surrogate pair": ("1: dog", '1: "\\ud83d"', "data.yaml:8:9", "invalid Unicode"),
    "a list of another suffix": ("list.txt", "obj.names", "data.yaml", "val names"),
    "two places": ("list.txt", "[images/val, images/train]", "data.yaml", "val names 2 places"),
    "a tab": ("nc: 2", "\tnc: 2", "data.yaml:5:1", "cannot start any token"),
    "a list of classes named": ("nc: 2", "names: obj.names", "data.yaml:6:1", "'names' stands in"),
}


def build_folder(name: str, data: bytes, folder: Path) -> partial[Any]:
    """A YOLO data set of two splits with this file in it."""
    yolo_folder(folder)
    (folder / name).write_bytes(data)
    return partial(_read_folder, folder / name if name.endswith(".yaml") else folder)


def _read_folder(path: Path) -> ReadResult:
    layout = find_layout(path)
    reads = list(read_places(layout.kind, layout.splits, layout.classes).values())
    return replace(reads[0], findings=tuple(one for read in reads for one in read.findings))


def yolo_folder(folder: Path) -> None:
    """A YOLO data set of two splits, without the file that describes it."""
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        for kind, suffix, content in (
            ("images", ".png", PNG),
            ("labels", ".txt", b"1 0.5 0.5 0.25 0.25\n"),
        ):
            path = folder / kind / split / f"{name}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (folder / "list.txt").write_text("./images/val/c.png\n")
    (folder / "train.txt").write_text("images/train/a.png\nimages/train/b.png\n")
    (folder / "obj.names").write_text("cat\ndog\n")


def cases() -> Iterator[Case]:
    """All entries of this kind."""
    for name, (old, new, where, says) in YAMLS.items():
        assert DATA_YAML.count(old) == 1
        data = DATA_YAML.replace(old, new).encode()
        build = partial(build_folder, "data.yaml", data)
        yield Case("data.yaml", name, build, Verdict.DATA, where, says)
    data = b"classes = 3\ntrain = data/train.txt\nnames = data/obj.names\n"
    build = partial(build_folder, "obj.data", data)
    yield Case("obj.data", "another count", build, Verdict.DATA, "obj.data", "classes is 3, but")
    data = b"classes = 2\ntrain = data/train.txt\nnames = data/obj\0.names\n"
    build = partial(build_folder, "obj.data", data)
    yield Case("obj.data", "no name of a file", build, Verdict.DATA, "obj.names", "does not exist")
    latin = DATA_YAML.replace("dog", "Stra\xdfe").encode("latin-1")
    build = partial(build_folder, "data.yaml", latin)
    yield Case("data.yaml", "latin-1", build, Verdict.DATA, "data.yaml", "not UTF-8")
