"""The data set a verb takes: a folder with the usual layout of its format, or an experiment."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.errors import ConfigError
from orchestrator.layouts.layout import FORMATS, Place

if TYPE_CHECKING:
    from orchestrator.data.decode import Decoding
    from orchestrator.data.findings import ReadResult
    from orchestrator.data.readers.paths import ReadRules


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


class Found(NamedTuple):
    """A data set, as :func:`~orchestrator.data.readers.convert.read_places` takes it.

    Attributes:
        kind: its format.
        places: its splits, by name.
        classes: file that names the classes; None where the annotations do.
        rules: what the files are read by.
        decoding: how image files become pixels.
    """

    kind: str
    places: dict[str, Place]
    classes: Path | None
    rules: ReadRules
    decoding: Decoding


def find_source(arguments: argparse.Namespace) -> Found:
    """The data set that the arguments name.

    Raises:
        ConfigError: options that contradict each other, or one that is missing.
        DataError: the splits are not where they usually are.
    """
    if is_experiment(arguments.source):
        _refuse_options(arguments)
        return _of_experiment(arguments.source, arguments.overrides)
    return _of_folder(arguments)


def read_source(arguments: argparse.Namespace) -> dict[str, ReadResult]:
    """The splits by name, as :func:`find_source` finds them; those without files from shards.

    Raises:
        ConfigError: options that contradict each other, or one that is missing.
        DataError: the splits are not where they usually are, or malformed.
    """
    from orchestrator.data.readers.convert import read_places

    if is_experiment(arguments.source):
        from orchestrator.config.resolve import load_experiment
        from orchestrator.data.readers.split import read_split

        _refuse_options(arguments)
        data = load_experiment(arguments.source, arguments.overrides).experiment.data
        splits = {"train": data.train, "val": data.val}
        if any(split.files is None for split in splits.values()):
            return {name: read_split(data, split) for name, split in splits.items()}
    return read_places(*find_source(arguments))


def _refuse_options(arguments: argparse.Namespace) -> None:
    if arguments.kind or arguments.split or arguments.classes:
        raise ConfigError("an experiment file says --from, --split and --classes itself")


def _of_experiment(path: Path, overrides: Sequence[str]) -> Found:
    from orchestrator.config.resolve import load_experiment

    data = load_experiment(path, overrides).experiment.data

    from orchestrator.data.decode import Decoding
    from orchestrator.data.readers.classes import class_file
    from orchestrator.data.readers.split import rules_of

    root = Path(data.root).resolve()
    places = {}
    for name, split in (("train", data.train), ("val", data.val)):
        if split.files is None:
            raise ConfigError(
                f"{path} data.{name}: names shards alone, and shards are written from files. Next: "
                "give the folder of the data set, or an experiment that names images and "
                f"annotations; `orchestrator convert data {path} OUT --to coco` makes files of them"
            )
        images, annotations = split.files
        places[name] = Place(root / images, root / annotations)
    return Found(
        kind=data.format,
        places=places,
        classes=class_file(data.format, root, data.classes),
        rules=rules_of(data),
        decoding=Decoding(data.orientation, data.levels),
    )


def _of_folder(arguments: argparse.Namespace) -> Found:
    from orchestrator.data.decode import STORED
    from orchestrator.data.readers.paths import USUAL
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
    return Found(layout.kind, dict(layout.splits), classes, USUAL, STORED)
