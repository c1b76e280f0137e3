"""``orchestrator rerun``: do a run again from its folder and compare the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.detector import split_overrides
from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import folder_to_fill
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.sweeps.rerun import Rerun


def main(argv: Sequence[str]) -> int:
    """Train again and say whether the weights are the same; 0 if they are, 1 if not."""
    parser = Parser(
        prog="orchestrator rerun",
        description="train again what a run folder describes, in a new folder, and compare the "
        "digests of the weights; the exit code is 0 if they are equal and 1 if not",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|SWEEP [key.path=value ...]",
        help="a run folder, or a sweep's with --trial; values that decide no result, such as "
        "data.root where the data has moved",
    )
    parser.add_argument(
        "--trial", metavar="best|N", help="which trial of a sweep: the best, or its number"
    )
    parser.add_argument("--name", help="of the new run (default: the old one's and -rerun)")
    parser.add_argument(
        "--storage",
        type=folder_to_fill,
        metavar="FOLDER",
        help="where the new run folder is made (default: beside the old one, or beside its sweep)",
    )
    add_json(parser)
    arguments = parser.parse_args(argv)
    overrides, folders = split_overrides(arguments.words)
    if len(folders) != 1:
        raise ConfigError(f"{parser.prog}: expected one folder, found {folders or 'none'}")

    from orchestrator.storage.run_files import RUN_OR_SWEEP, require_there

    require_there(Path(folders[0]), what=RUN_OR_SWEEP)

    from orchestrator.sweeps.rerun import find_run, rerun

    with json_output(arguments.json) as emit:
        run = find_run(Path(folders[0]), arguments.trial, overrides)
        done = rerun(run, name=arguments.name, storage=arguments.storage, overrides=overrides)
        emit(asdict(done) | {"equal": done.equal})
        return _verdict(run.name, done)


def _verdict(name: str, done: Rerun) -> int:
    """Say how the second run compares; the exit code."""
    if done.code:
        return done.code
    if done.equal:
        print(f"{name}: the same weights, to the bit: sha256 {done.found}")
        return 0
    print(f"{name}: other weights\n  then sha256 {done.expected}\n  now  sha256 {done.found}")
    for line in done.changed:
        print(f"  not the same: {line}")
    for line in done.unknown:
        print(f"  not known: {line}")
    if not done.changed and not done.unknown:
        print("  settings, data and program are the same; compare the machines in run_card.md")
    return 1
