"""``orchestrator init``: from a folder of annotated images to an experiment file that runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from orchestrator.cli._shared.bars import bars
from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import Parser, number_between
from orchestrator.layouts.layout import Task


def main(argv: Sequence[str]) -> int:
    """Say what is in a folder, split it if need be, examine it and write an experiment file."""
    parser = Parser(
        prog="orchestrator init",
        description="look at a folder of annotated images (layouts of Roboflow, Ultralytics, CVAT, "
        "Label Studio, FiftyOne, Pascal VOC, COCO), split it where it is not, examine it, and "
        "write an experiment file that runs. The folder itself is left alone",
    )
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, help="or its data.yaml, or one COCO file"
    )
    parser.add_argument(
        "--task",
        choices=get_args(Task),
        default="detect",
        help="what the folder was annotated for; a detector learns boxes, so of outlines (segment, "
        "obb) the boxes around them are taken, of key points (pose) their boxes (default: detect)",
    )
    parser.add_argument(
        "--orientation",
        choices=("stored", "displayed"),
        help="what boxes belong to where images have an orientation tag, as phones write it: the "
        "pixels as they are stored, or the picture as it is displayed (default: what fits them; "
        "stored where nothing tells)",
    )
    parser.add_argument("--name", help="of the run (default: the folder's)")
    parser.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE.yaml",
        help="experiment file (default: NAME.yaml)",
    )
    parser.add_argument(
        "--val",
        type=number_between(0, 1, ends="()"),
        default=0.2,
        metavar="SHARE",
        help="of the images that are evaluated on, where the folder has no split (default: 0.2)",
    )
    parser.add_argument(
        "--seed",
        type=number_between(0, whole=True),
        default=1,
        metavar="N",
        help="of that split (default: 1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the experiment file")
    arguments = parser.parse_args(argv)

    from orchestrator.layouts.recognise import find_layout

    # What is wrong with it is said before the seconds that loading PyTorch takes.
    find_layout(arguments.folder)

    from orchestrator.accelerators import of_this_process
    from orchestrator.checkpoints.published import is_within_reach
    from orchestrator.cli import check
    from orchestrator.init.make import Wanted, look, make

    wanted = Wanted(
        arguments.name,
        arguments.output,
        arguments.seed,
        arguments.val,
        arguments.overwrite,
        arguments.task,
        arguments.orientation,
    )
    source = look(arguments.folder, wanted)
    print("\n".join(source.lines()))
    with bars("looking for equal images") as bar:
        task = bar.add_task("images", total=None)
        choice, told, commands = make(
            source,
            wanted,
            of_this_process("auto").kind,
            weights=is_within_reach,
            command=shlex.join(["orchestrator", "init", *argv]),
            progress=lambda seen, total: bar.update(task, completed=seen, total=total),
        )
    for line in told:
        print(line)
    detector = choice.recipe.detector
    print(
        f"{source.output}: {detector['variant']}, {choice.epochs} epochs of "
        f"{choice.steps // choice.epochs} steps of {choice.batch_size} images\n"
    )
    code = check.main([str(source.output)])
    if code == 0:
        print("\n".join(["", "Next:", *(f"  {command}" for command in commands)]))
    return code
