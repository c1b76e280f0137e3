"""``orchestrator check-cluster``: examine the files that describe a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import ConfigError, printable

if TYPE_CHECKING:
    from orchestrator.cluster_files.check import FileReport


def main(argv: Sequence[str], verbs: Sequence[str] = ()) -> int:
    """Print what is wrong with cluster files, line by line, and return 64 where anything is."""
    parser = Parser(
        prog="orchestrator check-cluster",
        description="examine files of Ray's launcher, KubeRay, Docker Compose, SkyPilot, Kubeflow "
        "Trainer and Slurm, and Dockerfiles: keys, versions, arithmetic, tokens, secrets, ports, "
        "commands, mounts. Files that belong together are given together.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.add_argument(
        "--experiment",
        action="append",
        default=[],
        type=Path,
        metavar="YAML",
        help="whether this experiment fits the nodes that the files describe; may be repeated",
    )
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.cluster_files.check import check_files

    for file in arguments.files:
        if not file.is_file():
            raise ConfigError(f"{file} is no file; give the path of a cluster file")
    with json_output(arguments.json) as document:
        reports = check_files(
            arguments.files, experiments=arguments.experiment, verbs=frozenset(verbs)
        )
        count = sum(len(report.problems) for report in reports)
        _print(reports)
        document({"problems": count, "files": [report.to_json() for report in reports]})
    return ConfigError.exit_code if count else 0


def _print(reports: Sequence[FileReport]) -> None:
    for report in reports:
        for problem in report.problems:
            print(printable(str(problem)))
        for note in report.notes:
            print(printable(f"note: {note}"))
    for report in reports:
        kinds = ", ".join(dict.fromkeys(report.kinds)) or "unreadable"
        number = len(report.problems)
        print(f"{report.source}: {kinds}: {number or 'no'} problem{'s' * (number != 1)}")
        for name, message in report.fits.items():
            print(f"  {name}: {'fits' if message is None else message}")
