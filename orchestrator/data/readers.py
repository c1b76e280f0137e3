"""Every annotation format behind one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.data.classes import CLASSES_FILE, read_classes
from orchestrator.data.coco import read_coco
from orchestrator.data.findings import ReadResult
from orchestrator.data.label_map import LabelMap
from orchestrator.data.shards import read_shards, require_same
from orchestrator.data.text_files import UNREADABLE_IMAGE
from orchestrator.data.txt import read_txt
from orchestrator.data.voc import read_voc
from orchestrator.data.yolo import read_yolo
from orchestrator.errors import DataError

if TYPE_CHECKING:
    # The schema knows every detector and so imports torch, which no data task needs.
    from orchestrator.config.schema import DataConfig, SplitConfig

#: Readers of the formats that keep class names in a file of their own.
LISTED: dict[str, Callable[[Path, Path, LabelMap], ReadResult]] = {
    "voc": read_voc,
    "txt": read_txt,
    "yolo": read_yolo,
}


def read_split(config: DataConfig, split: SplitConfig) -> ReadResult:
    """Read the images and boxes of one split.

    Args:
        config: the ``data`` section.
        split: its ``train`` or ``val``.

    Raises:
        DataError: the split is missing or malformed, too many of its images had to be left out, or
            its shards are of other annotations.
        SecurityError: a path leads out of the image folder.
    """
    root = Path(config.root).resolve()
    annotated = None if split.files is None else _read_files(config, root, *split.files)
    if split.shards is None:
        assert annotated is not None, "the schema requires one of the two"
        return annotated
    remote = "://" in split.shards
    location = split.shards if remote else str(root / split.shards)
    sharded = read_shards(location, cache=config.cache)
    if annotated is None:
        return sharded
    require_same(sharded.dataset, annotated.dataset)
    return ReadResult(sharded.dataset, annotated.findings)


def _read_files(config: DataConfig, root: Path, folder: str, file: str) -> ReadResult:
    images, annotations = root / folder, root / file
    if config.format == "coco":
        return read_coco(images, annotations)
    classes = read_classes(root / (config.classes or CLASSES_FILE))
    result = LISTED[config.format](images, annotations, classes)
    _refuse_too_many_left_out(result, config.max_bad_fraction, annotations)
    return result


def _refuse_too_many_left_out(result: ReadResult, allowed: float, source: Path) -> None:
    for finding in result.findings:
        total = len(result.dataset) + finding.count
        if finding.kind == UNREADABLE_IMAGE and finding.count > allowed * total:
            raise DataError(
                f"{source}: {finding.count} of {total} images cannot be read, allowed is the "
                f"fraction data.max_bad_fraction = {allowed}; the first: {finding.examples[0]}\n"
                "put these files right, or take them out of the data set"
            )
