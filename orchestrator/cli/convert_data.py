"""``orchestrator convert data``: a data set from one annotation format to another."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.parser import Parser
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.data.convert import Converted
    from orchestrator.data.writers import Place

FORMATS = ("coco", "voc", "txt", "yolo")


def main(argv: Sequence[str]) -> int:
    """Convert a data set and print the ``data`` section that reads it."""
    parser = Parser(
        prog="orchestrator convert data",
        description="write a data set in another annotation format. The result is read back and "
        "compared before it gets its name; the source is left alone",
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        type=Path,
        help="folder with the usual layout of its format, or an experiment file that names places",
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to make")
    parser.add_argument("--from", dest="kind", choices=FORMATS, help="format of SRC, if a folder")
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME",
        help="convert this split of a folder; may be repeated (default: all with a usual name)",
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="one name a line (default: SRC/classes.txt)"
    )
    parser.add_argument(
        "--link", action="store_true", help="hard links to the images instead of copies"
    )
    parser.add_argument(
        "--drop-crowd", action="store_true", help="leave out crowd (difficult) boxes"
    )
    arguments = parser.parse_intermixed_args(argv)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from orchestrator.data.convert import convert

    if arguments.source.suffix in (".yaml", ".yml"):
        if arguments.kind or arguments.split or arguments.classes:
            raise ConfigError("an experiment file says --from, --split and --classes itself")
        kind, places, classes = _of_experiment(arguments.source)
    else:
        if arguments.kind is None:
            raise ConfigError(f"--from: needed with a folder; allowed are {', '.join(FORMATS)}")
        kind, places, classes = _of_folder(arguments)
    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("images", total=None)
        converted = convert(
            kind,
            places,
            classes,
            arguments.to,
            arguments.target,
            link=arguments.link,
            drop_crowd=arguments.drop_crowd,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print("\n".join(_lines(converted, arguments.to, arguments.target)))
    return 0


def _of_experiment(path: Path) -> tuple[str, dict[str, Place], Path | None]:
    from orchestrator.config.resolve import load_experiment
    from orchestrator.data.classes import CLASSES_FILE
    from orchestrator.data.writers import Place

    data = load_experiment(path).experiment.data
    root = Path(data.root).resolve()
    places = {
        name: Place(root / split.images, root / split.annotations)
        for name, split in (("train", data.train), ("val", data.val))
    }
    classes = None if data.format == "coco" else root / (data.classes or CLASSES_FILE)
    return data.format, places, classes


def _of_folder(arguments: argparse.Namespace) -> tuple[str, dict[str, Place], Path | None]:
    from orchestrator.data.classes import CLASSES_FILE
    from orchestrator.data.layouts import find_splits

    places = find_splits(arguments.source, arguments.kind, arguments.split)
    if arguments.kind == "coco":
        if arguments.classes:
            raise ConfigError("--classes: COCO annotations name the classes themselves")
        return "coco", places, None
    return arguments.kind, places, arguments.classes or arguments.source / CLASSES_FILE


def _lines(converted: dict[str, Converted], kind: str, target: Path) -> list[str]:
    """What was done, and how to train on it."""
    lines = []
    for name, one in converted.items():
        data = one.data
        lines.append(f"{name}: {len(data)} images, {len(data.labels)} boxes")
        lines.append(f"  digest of classes, images, boxes and labels {data.content_digest}")
        lines += [f"  {finding}" for finding in one.findings]
        lines += [f"  not in {kind}: {lost}" for lost in one.lost]
    lines += ["", "data:", f"  format: {kind}", f"  root: {target}"]
    for name, one in converted.items():
        images, annotations = (
            path.relative_to(target) for path in (one.place.images, one.place.annotations)
        )
        key = next((key for key in ("train", "val") if name.startswith(key)), f"# {name}")
        lines.append(f"  {key}: {{images: {images}, annotations: {annotations}}}")
    return lines
