"""``orchestrator config``: look at an experiment without running it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from orchestrator.cli.parser import Parser


def main(argv: Sequence[str]) -> int:
    """Print a resolved experiment, or the JSON Schema of experiment files."""
    parser = Parser(prog="orchestrator config", description="look at an experiment")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser(
        "show", help="print the resolved experiment with the origin of each value"
    )
    show.add_argument("experiment", metavar="EXPERIMENT.yaml")
    show.add_argument("overrides", nargs="*", metavar="key.path=value")
    actions.add_parser("schema", help="print the JSON Schema, for editors")
    arguments = parser.parse_args(argv)
    if arguments.action == "show":
        _show(arguments.experiment, arguments.overrides)
    else:
        _schema()
    return 0


def _show(experiment: str, overrides: Sequence[str]) -> None:
    from orchestrator.config.printing import print_config
    from orchestrator.config.resolve import load_experiment

    _write(print_config(load_experiment(experiment, overrides)))


def _schema() -> None:
    from orchestrator.config.shape import json_schema

    _write(json.dumps(json_schema(), indent=2) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has seen enough. Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
