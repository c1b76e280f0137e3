"""``orchestrator convert data``: a data set from one annotation format to another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.bars import bars
from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import folder_to_fill
from orchestrator.cli._shared.parser import Parser
from orchestrator.cli._shared.source import (
    add_overrides,
    add_source,
    decoding_lines,
    read_source,
)
from orchestrator.layouts.layout import FORMATS

if TYPE_CHECKING:
    from orchestrator.data.readers.convert import Converted


def main(argv: Sequence[str]) -> int:
    """Convert a data set and print the ``data`` section that reads it."""
    parser = Parser(
        prog="orchestrator convert data",
        description="write a data set in another annotation format. The result is read back and "
        "compared before it gets its name; the source is left alone",
    )
    add_source(parser)
    parser.add_argument("target", metavar="OUT", type=folder_to_fill, help="folder to make")
    add_overrides(parser)
    parser.add_argument("--to", required=True, choices=FORMATS, help="format of OUT")
    parser.add_argument(
        "--link", action="store_true", help="hard links to the images instead of copies"
    )
    parser.add_argument(
        "--drop-crowd", action="store_true", help="leave out crowd (difficult) boxes"
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.data.readers.convert import convert

    results = read_source(arguments)
    with bars("images") as bar:
        task = bar.add_task("images", total=None)
        converted = convert(
            results,
            arguments.to,
            arguments.target,
            link=arguments.link,
            drop_crowd=arguments.drop_crowd,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    with json_output(arguments.json) as emit:
        print("\n".join(_lines(converted, arguments.to, arguments.target)))
        emit({"splits": {name: _document(one) for name, one in converted.items()}})
    return 0


def _document(one: Converted) -> dict[str, Any]:
    return {
        "images": str(one.place.images),
        "annotations": str(one.place.annotations),
        "number_of_images": len(one.data),
        "boxes": len(one.data.labels),
        "content_digest": one.data.content_digest,
        "findings": [str(finding) for finding in one.findings],
        "lost": list(one.lost),
    }


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
    lines += decoding_lines(next(iter(converted.values())).data)
    for name, one in converted.items():
        images, annotations = (
            path.relative_to(target) for path in (one.place.images, one.place.annotations)
        )
        key = next((key for key in ("train", "val") if name.startswith(key)), f"# {name}")
        lines.append(f"  {key}: {{images: {images}, annotations: {annotations}}}")
    return lines
