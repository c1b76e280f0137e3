"""``orchestrator ship``: bring MLflow up to date with runs that are over."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import StorageError, printable


def main(argv: Sequence[str]) -> int:
    """Ship what is missing of each run, and of the trials of each sweep."""
    parser = Parser(
        prog="orchestrator ship",
        description="send MLflow what it lacks of runs that are over; what it has stays as it is",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folder, or folder of a sweep"
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.storage.run_files import MLFLOW_SPEC
    from orchestrator.tracking.mlflow_shipper import ship_later

    left, runs = [], []
    with json_output(arguments.json) as emit:
        for run in arguments.runs:
            if not run.is_dir():
                raise StorageError(f"{run}: there is no such run folder")
            trials = sorted(spec.parent for spec in run.glob(f"trial-*/{MLFLOW_SPEC}"))
            for folder in [run, *trials]:
                try:
                    shipped = ship_later(folder, say=lambda text: print(text, file=sys.stderr))
                except StorageError as error:
                    # One that trains, or was never tracked, keeps no other back.
                    print(printable(str(error)), file=sys.stderr)
                    left.append(folder)
                    continue
                print(f"{folder}: {shipped}")
                if shipped is not None and not shipped.complete:
                    left.append(folder)
                runs.append(
                    {"folder": folder, "mlflow": None if shipped is None else asdict(shipped)}
                )
        emit({"runs": runs})
    if left:
        raise StorageError(
            f"{len(left)} of the runs did not arrive whole: {', '.join(map(str, left))}. Next: see "
            "that the server of tracking.mlflow answers, then ask again"
        )
    return 0
