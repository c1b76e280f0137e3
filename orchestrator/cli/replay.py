"""``orchestrator replay``: repeat a step that was not finite and say what broke."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli._shared.parser import Parser, number_between


def main(argv: Sequence[str]) -> int:
    """Repeat a kept step; 0 whether or not it breaks again."""
    parser = Parser(
        prog="orchestrator replay",
        description="repeat a training step whose loss or gradient was not finite",
    )
    parser.add_argument("run", metavar="RUN_FOLDER", type=Path)
    parser.add_argument(
        "--step",
        type=number_between(0, whole=True),
        help="as the run's log numbers it (default: the newest one kept)",
    )
    parser.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu", "npu"),
        default="auto",
        help="device to repeat it on (default: auto)",
    )
    arguments = parser.parse_args(argv)

    from orchestrator.storage.run_files import require_there

    require_there(arguments.run, what="a run folder")

    from orchestrator.accelerators import of_this_process
    from orchestrator.training.replay import replay

    accelerator = of_this_process(arguments.accelerator)
    for line in replay(arguments.run, arguments.step, accelerator=accelerator).lines():
        print(line)
    return 0
