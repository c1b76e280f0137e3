"""``orchestrator fit``: the largest batch that a device here can learn from."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import COUNT, Parser, number_between


def main(argv: Sequence[str]) -> int:
    """Try, print the lines."""
    parser = Parser(
        prog="orchestrator fit",
        description="find how many images at a time fit into the memory of a device here, by steps "
        "on the worst batches the experiment can meet, and print the lines that say so",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--memory",
        type=number_between(1),
        metavar="BYTES",
        help="limit; default: the card's, on a CPU none",
    )
    parser.add_argument(
        "--headroom",
        type=number_between(0, 1, ends="[)"),
        default=0.1,
        metavar="F",
        help="part left free (default: 0.1)",
    )
    parser.add_argument(
        "--boxes", type=COUNT, metavar="N", help="of every image (default: the data set's most)"
    )
    parser.add_argument("--classes", type=COUNT, metavar="K", help="(default: the data set's)")
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.config.resolve import load_experiment

    experiment = load_experiment(arguments.experiment, arguments.overrides)

    from orchestrator.benchmark.fit import fit

    with json_output(arguments.json) as emit:
        found = fit(
            experiment,
            memory=None if arguments.memory is None else int(arguments.memory),
            headroom=arguments.headroom,
            boxes=arguments.boxes,
            classes=arguments.classes,
            watch=_tell,
        )
        images, peak = found.largest
        print(
            f"{images} images at a time, {found.boxes} boxes in each: {(peak or 0) / 1e9:.2f} of "
            f"{found.memory / 1e9:.2f} GB at the peak"
        )
        own, most = found.lines
        print("the experiment's batch:\n" + _section(own))
        print("the largest batch in one piece:\n" + _section(most))
        emit({"images": images, "peak": peak, "memory": found.memory, "train": [own, most]})
    return 0


def _tell(images: int, peak: int | None) -> None:
    """Say how a trial went, since each may take minutes."""
    took = "more than there is" if peak is None else f"{peak / 1e9:.2f} GB"
    print(f"tried {images} images: {took}", file=sys.stderr)


def _section(lines: str) -> str:
    return "\n".join(["  train:", *(f"    {line}" for line in lines.splitlines())])
