"""From one annotation format to another, proven by reading the result back.

Everything is written into a folder beside the target and read again from there; only when classes,
images, boxes and labels are those of the source is the folder given its name. What the target
format has no place for is refused or named, never dropped in silence.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.findings import Finding, ReadResult
from orchestrator.data.images import image_bytes, image_exists
from orchestrator.data.label_map import LabelMap
from orchestrator.data.readers.classes import read_classes
from orchestrator.data.readers.paths import USUAL, ReadRules
from orchestrator.data.readers.split import classes_of, read_files
from orchestrator.data.readers.writers import WRITERS, usual_place
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.layouts.layout import Place
from orchestrator.layouts.recognise import CLASSES_FILE

#: Told each image that is in its place: images so far, images in all.
Progress = Callable[[int, int], None]


#: Bytes of a name that are no UTF-8, as Python has them in text.
_NO_TEXT = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Converted:
    """What became of one split.

    Attributes:
        place: of the result.
        data: that was written.
        findings: what the reader of the source noticed.
        lost: what the target format has no place for, in words.
    """

    place: Place
    data: Dataset
    findings: tuple[Finding, ...]
    lost: tuple[str, ...]


def read_place(
    kind: str, place: Place, classes: LabelMap | None, rules: ReadRules = USUAL
) -> ReadResult:
    """Read one split of format ``kind``; all of this program but COCO need ``classes``."""
    read = read_files(kind, place.images, place.annotations, classes, rules)
    decoding = replace(read.dataset.decoding, orientation=rules.orientation)
    return replace(read, dataset=replace(read.dataset, decoding=decoding))


def read_places(
    kind: str,
    places: Mapping[str, Place],
    classes: Path | None,
    rules: ReadRules = USUAL,
) -> dict[str, ReadResult]:
    """Read the splits of a data set.

    Args:
        kind: its format: coco, voc, txt or yolo, or one of another package.
        places: its splits, by name.
        classes: file that names the classes; None where the annotations do.
        rules: what the files are read by.

    Raises:
        DataError: it is malformed.
    """
    annotations = [place.annotations for place in places.values()]
    label_map = classes_of(kind, classes, annotations, rules)
    return {name: read_place(kind, place, label_map, rules) for name, place in places.items()}


def convert(
    results: Mapping[str, ReadResult],
    target_kind: str,
    target: Path,
    *,
    link: bool = False,
    drop_crowd: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict[str, Converted]:
    """Write the splits of a data set in another format.

    Args:
        results: its splits as they were read, by name.
        target_kind: format to write: coco, voc, txt or yolo.
        target: folder to make.
        link: whether images become hard links to those of the source, instead of copies.
        drop_crowd: leave out crowd (difficult) boxes.
        progress: called while images are copied.

    Returns:
        What became of each split.

    Raises:
        DataError: images of the source cannot be read, or it holds what the target format cannot.
        ConfigError: ``link``, and the images are no files of this machine.
        StorageError: ``target`` exists or cannot be written.
    """
    if link and not all(result.dataset.in_folder for result in results.values()):
        raise ConfigError(
            "--link: images in shards or a bucket are no files here, so there is nothing to link "
            "to. Next: leave --link out, and they are written as files"
        )
    sources = {name: _kept(result.dataset, drop_crowd) for name, result in results.items()}
    first, *others = sources.values()
    for name, other in zip(list(sources)[1:], others, strict=True):
        first.label_map.require_equal(other.label_map, here=next(iter(sources)), there=name)
    for data in sources.values():
        _refuse_names(data, target_kind)
    shared = len({data.root for data in sources.values()}) == 1
    with _made_whole(target) as draft:
        _write_classes(first.label_map, target_kind, draft)
        written = {
            name: usual_place(draft, target_kind, name, own_folder=not shared) for name in sources
        }
        _place_images(sources, written, link=link, progress=progress)
        for name, data in sources.items():
            WRITERS[target_kind](data, written[name])
        for name, data in sources.items():
            _prove(name, data, target_kind, written[name], draft)
    return {
        name: Converted(
            place=usual_place(target, target_kind, name, own_folder=not shared),
            data=data,
            findings=results[name].findings,
            lost=tuple(_lost(data, target_kind)),
        )
        for name, data in sources.items()
    }


def _refuse_names(data: Dataset, kind: str) -> None:
    """Refuse names of files that annotations of a format cannot hold.

    Raises:
        DataError: one is no UTF-8 text, or has an end of a line where names are lines.
    """
    for file in data.files:
        ends = kind != "coco" and any(character in file for character in "\n\r")
        if ends or _NO_TEXT.search(file):
            what = "has an end of a line in it" if ends else "is no UTF-8 text"
            raise DataError(
                f"{data.root}: the name {file!a} {what}, and {kind} cannot hold it\n"
                "rename the file, in the annotations too"
            )


def _kept(data: Dataset, drop_crowd: bool) -> Dataset:
    if not drop_crowd:
        return data
    keep = ~data.crowd
    before = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
    return replace(
        data,
        offsets=before[data.offsets],
        boxes_xywh=data.boxes_xywh[keep],
        labels=data.labels[keep],
        areas=data.areas[keep],
        crowd=data.crowd[keep],
    )


@contextmanager
def _made_whole(target: Path) -> Iterator[Path]:
    """A folder that becomes ``target`` when all went well and is removed when not."""
    if target.exists():
        raise StorageError(f"{target} exists; name a folder that does not, nothing is overwritten")
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_classes(label_map: LabelMap, kind: str, root: Path) -> None:
    if kind == "coco":
        return
    path = root / CLASSES_FILE
    lines = "".join(f"{name}\n" for name in label_map.names)
    path.write_text(lines, encoding="utf-8", newline="\n")
    back = read_classes(path)
    if back.names != label_map.names:
        raise DataError(
            f"classes {', '.join(label_map.names)} would be read back from a list as "
            f"{', '.join(back.names)}\ncall them otherwise in the source, or choose coco"
        )


def _place_images(
    sources: Mapping[str, Dataset],
    places: Mapping[str, Place],
    *,
    link: bool,
    progress: Progress,
) -> None:
    """Copy or link every image that is there; splits may share some."""
    pairs = {
        places[name].images / posixpath.normpath(file): (data, index)
        for name, data in sources.items()
        for index, file in enumerate(data.files)
    }
    for done, (target, (data, index)) in enumerate(pairs.items(), start=1):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not data.in_folder:
            if image_exists(data, index):
                target.write_bytes(image_bytes(data, index))
        elif (source := data.path(index)).is_file():
            if link:
                target.hardlink_to(source.resolve())
            else:
                shutil.copyfile(source, target)
        progress(done, len(pairs))


def _prove(name: str, data: Dataset, kind: str, place: Place, root: Path) -> None:
    """Read a split back and compare.

    Raises:
        DataError: it is not what was written; says where the first difference is.
    """
    classes = None if kind == "coco" else read_classes(root / CLASSES_FILE)
    try:
        rules = ReadRules(orientation=data.decoding.orientation)
        back = read_place(kind, place, classes, rules).dataset
    except DataError as error:
        raise DataError(
            f"{name}: {kind} cannot hold this data set; of the result: {error}"
        ) from error
    if back.content_digest != data.content_digest:
        raise DataError(
            f"{name}: {kind} cannot hold this data set unchanged: {difference(data, back)}\n"
            "put it right in the source (orchestrator check lists what is wrong with it), or "
            "choose another format"
        )


def difference(one: Dataset, other: Dataset) -> str:
    """The first thing in which two data sets of the same classes differ, in words."""
    files, others = ([posixpath.normpath(file) for file in data.files] for data in (one, other))
    if files != others:
        gone = sorted(set(files) - set(others))
        if gone:
            return f"{len(gone)} images are left out, such as {gone[0]}"
        return "images are called otherwise or stand in another order"
    for index, file in enumerate(files):
        for what, mine, theirs in (
            ("width", one.widths[index], other.widths[index]),
            ("height", one.heights[index], other.heights[index]),
        ):
            if mine != theirs:
                swapped = one.widths[index] == other.heights[index]
                swapped &= one.heights[index] == other.widths[index]
                hint = " as it is stored; if a tag turns it, pass --orientation displayed (of an "
                hint += "experiment: data.orientation=displayed)"
                return (
                    f"{file} is annotated with {what} {mine}, but is of {what} {theirs}"
                    f"{hint if swapped and other.decoding.orientation == 'stored' else ''}"
                )
        rows, other_rows = one.boxes_of(index), other.boxes_of(index)
        for what, ours, read in (
            ("boxes", one.boxes_xywh[rows].tolist(), other.boxes_xywh[other_rows].tolist()),
            ("labels", one.labels[rows].tolist(), other.labels[other_rows].tolist()),
            ("crowd flags", one.crowd[rows].tolist(), other.crowd[other_rows].tolist()),
        ):
            if ours != read:
                return f"{what} of {file} are {ours}, read back {read}"
    raise AssertionError("data sets of equal content have equal digests")


def _lost(data: Dataset, kind: str) -> Iterator[str]:
    """What formats other than COCO have no place for; training and evaluation go without."""
    if data.decoding.orientation == "displayed":
        yield "orientation: boxes are of the pictures as displayed (data.orientation: displayed)"
    if kind == "coco":
        return
    if (data.image_ids != np.arange(1, len(data) + 1)).any():
        yield "ids of images: they count from 1 now"
    if data.label_map.ids != tuple(range(len(data.label_map))):
        yield "ids of classes: they count from 0 now"
    boxes = data.boxes_xywh[:, 2] * data.boxes_xywh[:, 3]
    if count := int((~np.isclose(data.areas, boxes)).sum()):
        yield f"areas of {count} segments: width times height decides between small and large now"
