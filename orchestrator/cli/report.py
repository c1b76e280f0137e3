"""``orchestrator report``: one self-contained HTML page about a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import StorageError, printable
from orchestrator.storage.run_files import RESOLVED


def main(argv: Sequence[str]) -> int:
    """Write the page."""
    parser = Parser(
        prog="orchestrator report",
        description="write one HTML page about a run: numbers, curves, classes, errors, images",
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument(
        "overrides", nargs="*", metavar="key.path=value", help="such as data.root=FOLDER"
    )
    parser.add_argument(
        "--output",
        type=file_to_write,
        metavar="FILE",
        help="default: report.html in the run folder",
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.storage.run_files import require_there

    require_there(arguments.run, what="the folder that training printed as `run folder`")
    config = arguments.run / RESOLVED
    if not config.is_file():
        raise StorageError(
            f"{arguments.run}: is no run folder (it has no config/resolved.yaml). Next: name the "
            "folder that training printed as `run folder`"
        )

    from orchestrator.config.resolve import load_experiment

    experiment = load_experiment(config, arguments.overrides).experiment

    from orchestrator.evaluation.report import render_report
    from orchestrator.predict.scoring import read_split
    from orchestrator.runs.identity import experiment_trouble
    from orchestrator.runs.overview import run_troubles
    from orchestrator.storage.atomic import write_atomic
    from orchestrator.storage.run_files import REPORT

    for trouble in filter(None, (experiment_trouble(arguments.run), *run_troubles(arguments.run))):
        print(printable(f"warning: {arguments.run}: {trouble}"), file=sys.stderr)
    path = arguments.output or arguments.run / REPORT
    page = render_report(arguments.run, read_split(experiment, "val"))
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    with json_output(arguments.json) as emit:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
        emit({"page": path, "bytes": path.stat().st_size})
    return 0
