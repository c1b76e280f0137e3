"""``orchestrator submit``: run an experiment on a Ray cluster that is already there."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

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
    arguments = parser.parse_args(argv)

    from orchestrator.cluster.submission import connect, follow, prepare, submit

    submission = prepare(
        arguments.experiment,
        arguments.overrides,
        working_dir=Path.cwd(),
        excludes=arguments.exclude,
    )
    client = connect(arguments.address)
    print(f"uploading {submission.bytes / 1024**2:.1f} MiB", file=sys.stderr)
    job = submit(client, submission)
    print(f"started {job}: {submission.entrypoint}", file=sys.stderr)
    if arguments.no_wait:
        return 0
    try:
        follow(client, job)
    except KeyboardInterrupt:
        print(f"{job} goes on; `ray job stop {job}` ends it", file=sys.stderr)
        raise
    return 0
