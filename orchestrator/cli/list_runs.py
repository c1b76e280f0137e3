"""``orchestrator list``: the runs and sweeps below a folder, and how they stand."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import printable


def main(argv: Sequence[str]) -> int:
    """Print one line a run or sweep."""
    parser = Parser(prog="orchestrator list", description="runs and sweeps, one line each")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), help="storage of the experiments"
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.runs.overview import standings

    with json_output(arguments.json) as emit:
        runs = standings(arguments.folder)
        for each in runs:
            print(printable(each.text()))
        if not runs:
            print(f"no run or sweep below {arguments.folder}", file=sys.stderr)
        emit({"runs": [asdict(each) for each in runs]})
    return 0
