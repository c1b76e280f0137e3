"""What ``orchestrator init`` does, but for the printing."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.config.schema.experiment import RUN_NAME
from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.examine import quick_scan
from orchestrator.data.doctor.image_notes import orientation_of
from orchestrator.data.findings import ReadResult
from orchestrator.data.orientation import UPRIGHT, Orientation
from orchestrator.data.readers.convert import read_places
from orchestrator.data.readers.paths import ReadRules
from orchestrator.data.readers.writers import write_coco
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.init.choosing import Choice, Kind, choose
from orchestrator.init.splitting import split
from orchestrator.init.writing import DataSection, experiment_text
from orchestrator.layouts.layout import Layout, Place, Task
from orchestrator.layouts.recognise import find_layout
from orchestrator.storage.atomic import write_atomic

_ODD = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Wanted:
    """What the user says beside the folder.

    Attributes:
        name: of the run; None takes the folder's.
        output: experiment file; None takes the name.
        seed: of the split, where one has to be made.
        share: of the images that are evaluated on then.
        overwrite: whether an experiment file that is there may be replaced.
        task: what the folder was annotated for; boxes are taken in any case.
        orientation: what boxes belong to where images have an orientation tag; None takes what
            fits them, and the pixels as they are stored where nothing tells.
    """

    name: str | None = None
    output: Path | None = None
    seed: int = 1
    share: float = 0.2
    overwrite: bool = False
    task: Task = "detect"
    orientation: Orientation | None = None


@dataclass(frozen=True)
class Source:
    """A folder, looked at.

    Attributes:
        layout: as recognised.
        read: its splits; only those that are used.
        name: of the run.
        output: experiment file to write.
        orientation: what boxes belong to where images have an orientation tag.
        notes: on that, one line each.
    """

    layout: Layout
    read: dict[str, ReadResult]
    name: str
    output: Path
    orientation: Orientation = "stored"
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What was found, for people."""
        classes = next(iter(self.read.values())).dataset.label_map.names
        shown = ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")
        root = _path(self.layout.root)
        lines = [f"{root}: {self.layout.title}, {len(classes)} classes: {shown}"]
        for name, one in self.read.items():
            lines.append(f"  {name}: {len(one.dataset)} images, {len(one.dataset.labels)} boxes")
            lines += [f"    {finding}" for finding in one.findings]
        return lines + [f"  {note}" for note in (*self.notes, *self.layout.notes)]


def look(folder: Path, wanted: Wanted) -> Source:
    """Recognise and read a folder.

    Raises:
        ConfigError: no run can have the name.
        DataError: its layout is not known, or the annotations are malformed.
        StorageError: the experiment file exists.
    """
    layout = find_layout(folder)
    name = wanted.name or _name_of(layout.root.resolve().name)
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(
            f"--name {name}: allowed is up to 100 of the letters a to z and A to Z, digits, '.', "
            f"'_' and '-', a letter or digit first. Next: --name {_name_of(name)}"
        )
    output = wanted.output or Path(f"{name}.yaml")
    if output.exists() and not wanted.overwrite:
        raise StorageError(
            f"{output} exists; nothing is overwritten. Next: pass --overwrite, or another --name"
        )
    pair = layout.pair()
    if pair is None and len(set(layout.splits.values())) > 1:
        layout.require_pair()
    used = pair or (next(iter(layout.splits)),)
    places = {split_name: layout.splits[split_name] for split_name in used}
    rules = ReadRules(orientation=wanted.orientation or "stored", task=wanted.task)
    read = read_places(layout.kind, places, layout.classes, rules)
    notes: list[str] = []
    if wanted.orientation is None:
        rules = replace(rules, orientation=_orientation(read, layout.kind, notes))
        if rules.orientation == "displayed":
            read = read_places(layout.kind, places, layout.classes, rules)
    return Source(layout, read, name, output, rules.orientation, tuple(notes))


def _orientation(read: Mapping[str, ReadResult], kind: str, notes: list[str]) -> Orientation:
    """What boxes that were read as stored belong to; notes get a line where it matters."""
    tags, fits = 0, set()
    for one in read.values():
        facts = quick_scan(one.dataset)
        tags += sum(each.tag != UPRIGHT for each in facts)
        fits.add(orientation_of(one.dataset, facts, kind=kind))
    sure = [one for one in fits if one is not None]
    images = f"{tags} images are to be turned when they are displayed"
    if len(sure) == 1:
        notes.append(f"{images}; boxes fit the pictures as {sure[0]} (data.orientation)")
        return sure[0]
    if tags:
        notes.append(
            f"{images}, and nothing tells for sure what their boxes fit: taken to be of the pixels "
            "as stored. Labelling tools mostly show pictures upright: if boxes lie beside their "
            "objects on the page of `orchestrator check --page`, init again with "
            "--orientation displayed"
        )
    return "stored"


def make(
    source: Source,
    wanted: Wanted,
    kind: Kind,
    *,
    weights: Callable[[str], bool],
    command: str,
    progress: Callable[[int, int], None] = lambda seen, total: None,
) -> tuple[Choice, list[str], list[str]]:
    """Split where needed, choose, and write the experiment file.

    Args:
        source: the folder.
        wanted: by the user.
        kind: of the devices that train.
        weights: whether published weights of a name can be had.
        command: for the comment.
        progress: told the images looked at for the split, and all of them.

    Returns:
        What was chosen, what to tell people, and the commands that come next.

    Raises:
        DataError: there are too few images.
        StorageError: something cannot be written.
    """
    layout, told = source.layout, []
    if (pair := layout.pair()) is not None:
        train, val = (source.read[one].dataset for one in pair)
        if layout.kind == "yolo" and wanted.task != "detect":
            about = f"Boxes of annotations for {wanted.task}, taken by orchestrator init."
            section = _written(source, {"train": train, "val": val}, wanted, "boxes", [about])
            told.append(f"{section.root}/: train.json and val.json, COCO, with the boxes")
        else:
            section = _as_it_is(layout, pair)
        if pair[1].startswith("test"):
            told.append("no split for validation, so the one for tests is evaluated on")
    else:
        (read,) = source.read.values()
        data = read.dataset
        train, val, cut = split(
            data,
            share=wanted.share,
            seed=wanted.seed,
            progress=lambda seen: progress(seen, len(data)),
        )
        about = f"Split by orchestrator init with seed {wanted.seed}: classes shared out alike,"
        more = "images that look the same kept together."
        if cut:
            more = f"{cut} images that look the same cut into runs by file name."
        section = _written(source, {"train": train, "val": val}, wanted, "split", [about, more])
        told += [
            f"no split, so one was made (seed {wanted.seed}); images to learn from: {len(train)}, "
            f"to evaluate on: {len(val)}",
            f"  {section.root}/: train.json and val.json, COCO; nothing else was touched",
        ]
        if cut:
            told.append(
                f"  {cut} images look the same and are too many to stay together: they were cut "
                "into runs by file name, so scores are of pictures like those learnt from"
            )
    if train.crowd.all():
        raise DataError(f"{layout.root}: no boxes to learn from")
    name = "torchvision:mobilenet_v2" if kind == "cpu" else "torchvision:ssd300_vgg16"
    available = weights(name)
    if not available:
        told.append(
            "published weights are out of reach, so the run begins with random ones and learns "
            f"more slowly; {source.output} says how to change that"
        )
    choice = choose(train, kind, weights=available)
    images = _path((Path(val.root) / val.files[0]).parent)
    commands = [
        shlex.join(["orchestrator", "run", str(source.output)]),
        shlex.join(["orchestrator", "predict", f"runs/{source.name}", images, "--draw", "drawn/"]),
    ]
    section = replace(section, orientation=source.orientation)
    text = experiment_text(
        source.name,
        str(source.output),
        section,
        train,
        choice,
        weights=available,
        made_by=command,
        commands=commands,
    )
    try:
        write_atomic(source.output, text.encode())
    except OSError as error:
        raise StorageError(f"{source.output} cannot be written: {error}") from error
    return choice, told, commands


def _name_of(text: str) -> str:
    """What a run may be called, as near to a text as it can be."""
    return _ODD.sub("-", text.lower()).strip("-")[:100] or "experiment"


def _path(path: Path) -> str:
    """From here where it lies below, absolute where not: the file is run from here."""
    absolute = path.absolute()
    here = Path.cwd()
    return os.path.relpath(absolute, here) if absolute.is_relative_to(here) else str(absolute)


def _as_it_is(layout: Layout, pair: tuple[str, str]) -> DataSection:
    train, val = (
        (layout.relative(place.images), layout.relative(place.annotations))
        for place in (layout.splits[name] for name in pair)
    )
    classes = None if layout.classes is None else layout.relative(layout.classes)
    found = f"Data: {layout.title}; learnt from is {pair[0]!r}, evaluated on is {pair[1]!r}."
    return DataSection(layout.kind, _path(layout.root), classes, train, val, [found])


def _written(
    source: Source,
    parts: dict[str, Dataset],
    wanted: Wanted,
    purpose: str,
    comments: list[str],
) -> DataSection:
    """Write the two parts as COCO files into a folder of their own, named after its purpose."""
    folder = source.output.parent / f"{source.name}-{purpose}"
    try:
        for name, part in parts.items():
            write_coco(part, Place(Path(part.root), folder / f"{name}.json"))
        about: dict[str, str | int | float] = {"from": str(source.layout.root), "task": wanted.task}
        if purpose == "split":
            about |= {"seed": wanted.seed, "share": wanted.share}
        if source.orientation == "displayed":
            about |= {"orientation": source.orientation}
        write_atomic(folder / f"{purpose}.json", json.dumps(about, indent=2).encode())
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}") from error

    def place(name: str) -> tuple[str, str]:
        images = Path(parts[name].root)
        below = images.is_relative_to(Path.cwd())
        where = os.path.relpath(images, folder.absolute()) if below else str(images)
        return where, f"{name}.json"

    lines = [f"Data: {source.layout.title}.", *comments]
    lines.append("If annotations change later, run init again.")
    return DataSection("coco", _path(folder), None, place("train"), place("val"), lines)
