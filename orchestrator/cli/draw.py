"""``orchestrator draw``: what was predicted, and what is there, on the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.cli._shared.outputs import folder_to_fill
from orchestrator.cli._shared.parser import Parser, number_between
from orchestrator.errors import printable


def main(argv: Sequence[str]) -> int:
    """Draw a file of predictions."""
    parser = Parser(
        prog="orchestrator draw",
        description="draw what `orchestrator predict` wrote on the images it names. With "
        "annotations true positives have full lines, false positives dashed ones and FP before "
        "their class, annotated boxes thin ones, and missed boxes the word missed below them",
    )
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS.json")
    parser.add_argument(
        "--output", type=folder_to_fill, default="drawn", metavar="FOLDER", help="default: drawn"
    )
    parser.add_argument(
        "--threshold",
        type=number_between(0, 1),
        metavar="SCORE",
        help="lowest drawn (default: 0.25, and the best 100 of an image)",
    )
    parser.add_argument("--all", action="store_true", help="every detection in the file")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file; a picture is the image whose file_name its path ends in",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="that their file names are relative to (default: any; the end of the path decides)",
    )
    parser.add_argument(
        "--orientation",
        choices=("stored", "displayed"),
        default="stored",
        help="of their boxes, where an image has an orientation tag and its size does not tell "
        "(default: stored)",
    )
    parser.add_argument("--sheets", action="store_true", help="contact sheets of 24 as well")
    arguments = parser.parse_args(argv)

    from orchestrator.data.readers.coco import read_coco
    from orchestrator.data.readers.paths import ReadRules
    from orchestrator.pages.drawing import DISPLAY_LIMIT, DISPLAY_SCORE
    from orchestrator.predict.draw_predictions import Truth, draw_predictions
    from orchestrator.predict.seed_form import read_seed_json

    found, label_map = read_seed_json(arguments.predictions)
    truth = None
    if arguments.annotations is not None:
        file = arguments.annotations
        dataset = read_coco(file.parent, file, ReadRules(need_images=False)).dataset
        if arguments.images is not None:
            below = arguments.images.absolute()
            dataset = replace(dataset, files=[str(below / name) for name in dataset.files])
        truth = Truth(dataset, str(file), arguments.orientation)
        names = set(dataset.label_map.names) ^ set(label_map.names)
        if names:
            print(f"classes by name; in one of the files alone: {', '.join(sorted(names))}")
    lowest = arguments.threshold
    if lowest is None:
        lowest = 0.0 if arguments.all else DISPLAY_SCORE
    drawn = draw_predictions(
        found,
        label_map,
        arguments.output,
        threshold=lowest,
        limit=None if arguments.all else DISPLAY_LIMIT,
        truth=truth,
        sheets=arguments.sheets,
    )
    for problem in drawn.problems:
        print(printable(f"skipped: {problem}"))
    if drawn.unknown:
        print(
            printable(
                f"without annotations: {len(drawn.unknown)} of {len(found)} pictures are none of "
                f"the images of {arguments.annotations}; the first is {drawn.unknown[0]}"
            )
        )
    print(f"{len(drawn.pictures)} images and {len(drawn.sheets)} sheets in {arguments.output}")
    return 0
