"""``orchestrator submit``: run an experiment on a Ray cluster that is already there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser


def main(argv: Sequence[str]) -> int:
    """Check, upload and start an experiment, then print its log until it ends."""
    parser = Parser(
        prog="orchestrator submit",
        description="run an experiment on a Ray cluster; started in the project's folder, which "
        "is uploaded",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--address", metavar="URL", help="of the Ray dashboard (default: http://127.0.0.1:8265)"
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out of the upload what this .gitignore pattern matches; may be repeated",
    )
    parser.add_argument("--no-wait", action="store_true", help="return once the job has started")
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.cluster.submission import connect, prepare, submit

    submission = prepare(
        arguments.experiment,
        arguments.overrides,
        working_dir=Path.cwd(),
        excludes=arguments.exclude,
    )
    client = connect(arguments.address)
    print(f"uploading {submission.describe()}", file=sys.stderr)
    job = submit(client, submission)
    print(f"started {job}: {submission.entrypoint}", file=sys.stderr)
    with json_output(arguments.json) as emit:
        emit({"job": job, "entrypoint": submission.entrypoint})
        return _wait(client, job, wanted=not arguments.no_wait)


def _wait(client: Any, job: str, *, wanted: bool) -> int:
    from orchestrator.cluster.submission import follow

    if not wanted:
        return 0
    try:
        follow(client, job)
    except KeyboardInterrupt:
        print(f"{job} goes on; `ray job stop {job}` ends it", file=sys.stderr)
        raise
    return 0
