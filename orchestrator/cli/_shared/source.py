"""The data set a verb takes: a folder with the usual layout of its format, or an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import ConfigError
from orchestrator.layouts.layout import FORMATS

if TYPE_CHECKING:
    from orchestrator.data.dataset import Dataset
    from orchestrator.data.findings import ReadResult


def add_source(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take a data set."""
    parser.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="folder of a data set or its data.yaml, or an experiment file that names places",
    )
    parser.add_argument(
        "--from", dest="kind", choices=FORMATS, help="format of SRC (default: recognised)"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="this split of a folder; may be repeated (default: all with a usual name)",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="one name a line, or data.yaml (default: what the layout has)",
    )
    parser.add_argument(
        "--orientation",
        choices=("stored", "displayed"),
        help="what boxes belong to where images have an orientation tag: the pixels as they are "
        "stored, or the picture as it is displayed (default: stored)",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take other values for an experiment; to be called after its positionals."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.path=value",
        help="other values for an experiment file, such as data.root=FOLDER",
    )


def is_experiment(path: Path) -> bool:
    """Whether a source is an experiment file."""
    from orchestrator.layouts.data_yaml import is_data_yaml

    return path.suffix in (".yaml", ".yml") and not is_data_yaml(path)


def read_source(
    arguments: argparse.Namespace, *, from_files: bool = False
) -> dict[str, ReadResult]:
    """The splits by name, as the arguments name them.

    Of an experiment they are read as a run reads them, but from its files where it names both files
    and shards.

    Args:
        arguments: of :func:`add_source` and :func:`add_overrides`.
        from_files: refuse an experiment that names shards alone.

    Raises:
        ConfigError: options that contradict each other, or one that is missing.
        DataError: the splits are not where they usually are, or malformed.
    """
    if is_experiment(arguments.source):
        _refuse_options(arguments)
        return _of_experiment(arguments.source, arguments.overrides, from_files=from_files)
    return _of_folder(arguments)


def decoding_lines(data: Dataset) -> list[str]:
    """Lines of a section ``data`` without which images would become other pixels; mostly none."""
    from orchestrator.data.decode import STORED

    names = ("orientation", "levels", "max_pixels")
    values = {name: getattr(data.decoding, name) for name in names}
    return [
        f"  {name}: {list(value) if isinstance(value, tuple) else value}"
        for name, value in values.items()
        if value != getattr(STORED, name)
    ]


def _refuse_options(arguments: argparse.Namespace) -> None:
    if arguments.kind or arguments.split or arguments.classes or arguments.orientation:
        raise ConfigError(
            "an experiment file says --from, --split, --classes and --orientation itself"
        )


def _of_experiment(
    path: Path, overrides: Sequence[str], *, from_files: bool
) -> dict[str, ReadResult]:
    from orchestrator.config.resolve import load_experiment

    data = load_experiment(path, overrides).experiment.data

    from orchestrator.data.readers.split import read_split

    results = {}
    for name, split in (("train", data.train), ("val", data.val)):
        if split.files is not None:
            split = split.model_copy(update={"shards": None})
        elif from_files:
            raise ConfigError(
                f"{path} data.{name}: names shards alone, and shards are written from files. Next: "
                "give the folder of the data set, or an experiment that names images and "
                f"annotations; `orchestrator convert data {path} OUT --to coco` makes files of them"
            )
        results[name] = read_split(data, split)
    return results


def _of_folder(arguments: argparse.Namespace) -> dict[str, ReadResult]:
    from orchestrator.data.doctor.examine import quick_scan
    from orchestrator.data.doctor.image_notes import tagged
    from orchestrator.data.readers.convert import read_places
    from orchestrator.data.readers.paths import ReadRules
    from orchestrator.layouts.recognise import find_layout

    if arguments.overrides:
        raise ConfigError(
            f"{arguments.overrides[0]}: other values are for an experiment file, and SRC is "
            f"{arguments.source}. Next: name an experiment file, or leave them out"
        )
    layout = find_layout(arguments.source, arguments.kind, arguments.split)
    if layout.kind == "coco" and arguments.classes:
        raise ConfigError("--classes: COCO annotations name the classes themselves")
    classes = arguments.classes or layout.classes
    rules = ReadRules(orientation=arguments.orientation or "stored")
    results = read_places(layout.kind, layout.splits, classes, rules)
    for name, read in results.items():
        data = read.dataset
        # What is written has sizes, so nobody sees later that they were taken from headers.
        note = tagged(data, quick_scan(data), kind=layout.kind, change="pass --orientation {}")
        if note is not None:
            results[name] = replace(read, findings=(*read.findings, note))
    return results
