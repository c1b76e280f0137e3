"""Paths: missing, of another kind than wanted, out of their folder, never ending."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cases_coco import TREE, build_coco, put
from cases_images import PNG
from cases_lines import build_classes, build_labels, build_txt
from cases_voc import XML, build_voc
from cases_yaml import FILE, YAML, build_yaml
from catalogue_case import Case, Verdict

TXT = b"a.png 1,2,11,10,1\n"

#: Reader to a sound data set, the file that takes another form, and the folder of images.
READERS: dict[str, tuple[Callable[[Path], partial[Any]], str, str]] = {
    "coco": (partial(build_coco, TREE), "instances.json", "images"),
    "txt": (partial(build_txt, TXT), "train.txt", "images"),
    "yolo": (partial(build_labels, b"1 0.5 0.5 0.25 0.25\n"), "labels/a.txt", "images"),
    "voc": (partial(build_voc, XML.encode(), b"a\n"), "Annotations/a.xml", "JPEGImages"),
    "voc set": (partial(build_voc, XML.encode(), b"a\n"), "ImageSets/Main/train.txt", "JPEGImages"),
    "classes": (partial(build_classes, b"cat\ndog\n"), "classes.txt", ""),
    "yaml": (partial(build_yaml, YAML.encode(), ()), FILE, ""),
}


def _gone(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _terabyte(path: Path) -> None:
    os.truncate(path, 0)
    os.truncate(path, 1 << 40)


FORMS = {
    "gone": _gone,
    "a folder": _folder,
    "a pipe": _pipe,
    "a link to itself": _loop,
    "a link to an endless device": _endless,
    "a terabyte of nothing": _terabyte,
}


def _formed(
    build: Callable[[Path], partial[Any]], file: str, form: Callable[[Path], None], folder: Path
) -> partial[Any]:
    call = build(folder)
    form(folder / file)
    return call


def _renamed(
    build: Callable[[Path], partial[Any]], position: int, name: str, folder: Path
) -> partial[Any]:
    """The call with another path in one place."""
    call = build(folder)
    arguments = list(call.args)
    arguments[position] = folder / name
    return partial(call.func, *arguments, **call.keywords)


def _image(form: str, folder: Path) -> partial[Any]:
    """A COCO data set whose second image has a form of its own."""
    root = folder / "set"
    root.mkdir()
    tree = put("/images/1/file_name", "b.png" if "folder" not in form else "away/b.png")
    call = build_coco(tree, root)
    image = root / "images" / "b.png"
    image.unlink()
    outside = folder / "outside"
    outside.mkdir()
    (outside / "b.png").write_bytes(PNG)
    match form:
        case "link out":
            image.symlink_to(outside / "b.png")
        case "relative link out":
            image.symlink_to("../../outside/b.png")
        case "chain of links out":
            (root / "images" / "c.png").symlink_to(outside / "b.png")
            image.symlink_to("c.png")
        case "link to the root":
            image.symlink_to("/")
        case "folder that is a link out":
            (root / "images" / "away").symlink_to(outside)
        case "folder that is a link to itself":
            (root / "images" / "away").symlink_to("away")
        case "folder that is a file":
            (root / "images" / "away").write_bytes(PNG)
        case "link to itself":
            image.symlink_to("b.png")
        case "link to nothing":
            image.symlink_to("gone.png")
    return call


def cases() -> Iterator[Case]:
    """All entries of this kind."""
    for kind, (build, file, _) in READERS.items():
        verdict = Verdict.CONFIG if kind == "yaml" else Verdict.DATA
        for form, change in FORMS.items():
            if (kind, form) in {("yolo", "gone")}:
                continue  # an image without labels is one without objects
            refused = verdict
            if form == "a link to an endless device" and kind in ("yolo", "voc"):
                refused = Verdict.SECURITY
            where = (
                "train.txt:1" if (kind, refused) == ("voc", Verdict.SECURITY) else Path(file).name
            )
            yield Case(
                "path", f"{kind}: {form}", partial(_formed, build, file, change), refused, where, ""
            )
    for kind, (build, _, images) in READERS.items():
        long = "a" * 300
        position = 1 if images else 0
        verdict = Verdict.CONFIG if kind == "yaml" else Verdict.DATA
        if kind == "voc set":
            continue  # the same arguments as voc
        yield Case(
            "path",
            f"{kind}: name of 300 letters",
            partial(_renamed, build, position, long),
            verdict,
            long,
            "",
        )
        yield Case(
            "path",
            f"{kind}: null byte in its name",
            partial(_renamed, build, position, "a\0b"),
            verdict,
            "a\0b",
            "",
        )
        if images:
            for name, path in (
                ("missing", "image"),
                ("of 300 letters", long),
                ("with a null byte", "a\0b"),
                ("that is a file", f"{images}/a.png"),
            ):
                yield Case(
                    "path",
                    f"{kind}: image folder {name}",
                    partial(_renamed, build, 0, path),
                    Verdict.DATA,
                    path,
                    "image folder",
                )
    for form in (
        "link out",
        "relative link out",
        "chain of links out",
        "link to the root",
        "folder that is a link out",
    ):
        yield Case(
            "path", f"image: {form}", partial(_image, form), Verdict.SECURITY, "image 1: ", "b.png"
        )
    for form in (
        "link to itself",
        "link to nothing",
        "folder that is a link to itself",
        "folder that is a file",
    ):
        yield Case(
            "path",
            f"image: {form}",
            partial(_image, form),
            Verdict.FINDING,
            "b.png",
            "missing_image",
        )
    for name, file in {
        "parent": "../a.png",
        "parent of a folder": "b/../../a.png",
        "absolute": "/etc/passwd",
        "null byte": "a\0.png",
        "folder": "b/",
        "this folder": ".",
        "parent folder": "..",
    }.items():
        yield Case(
            "path",
            f"coco file_name: {name}",
            partial(build_coco, put("/images/1/file_name", file)),
            Verdict.SECURITY,
            f"image 1: {file!r}",
            "of the image folder",
        )
    for name, file in {
        "of 300 letters": "a" * 300,
        "in a folder of 300 letters": "a" * 300 + "/b.png",
        "of 5,000 letters": "b/" * 2500 + "b.png",
        "of another system": "..\\a.png",
        "of a web address": "http://example.invalid/a.png",
    }.items():
        yield Case(
            "path",
            f"coco file_name: {name}",
            partial(build_coco, put("/images/1/file_name", file)),
            Verdict.FINDING,
            file,
            "missing_image",
        )
