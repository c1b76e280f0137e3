"""``orchestrator status``: how one run or sweep stands, and what MLflow has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import printable


def main(argv: Sequence[str]) -> int:
    """Print how each run or sweep stands."""
    parser = Parser(
        prog="orchestrator status", description="how a run or sweep stands; nothing is started"
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.runs.overview import standing
    from orchestrator.storage.run_files import MLFLOW_SPEC
    from orchestrator.tracking.mlflow_shipper import MlflowShipper
    from orchestrator.tracking.ship_state import RunSpec

    with json_output(arguments.json) as emit:
        runs = []
        for folder in arguments.runs:
            state = standing(folder)
            print(printable(state.text()))
            shipped = None
            if (folder / MLFLOW_SPEC).is_file():
                spec, _ = RunSpec.load(folder)
                shipped = MlflowShipper(folder, spec).shipped()
                print(printable(f"  {shipped}"))
            runs.append(asdict(state) | {"mlflow": None if shipped is None else asdict(shipped)})
        emit({"runs": runs})
    return 0
