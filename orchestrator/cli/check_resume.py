"""``orchestrator check-resume``: prove that killing an experiment does not change its weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import COUNT, Parser, number_between


def main(argv: Sequence[str]) -> int:
    """Train the first steps unbroken and killed, and print both digests and the verdict."""
    parser = Parser(
        prog="orchestrator check-resume",
        description="train the first steps of an experiment twice on this machine, in one go and "
        "killed again and again, and compare the digests of weights, optimizer and average",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--steps",
        type=number_between(2, whole=True),
        default=20,
        help="to train (default: 20)",
    )
    parser.add_argument("--kills", type=COUNT, default=5, help="to survive (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="of the instants (default: 1)")
    add_json(parser)
    arguments = parser.parse_args(argv)

    from orchestrator.config.resolve import load_experiment
    from orchestrator.errors import OrchestratorError

    # What is wrong with it is said before the seconds that loading PyTorch takes.
    load_experiment(arguments.experiment, arguments.overrides)

    from orchestrator.runs.check_resume import check_resume
    from orchestrator.training.interrupt import stopping_at_once

    with json_output(arguments.json) as emit, stopping_at_once(), _own_folder() as folder:
        found = check_resume(
            arguments.experiment,
            arguments.overrides,
            steps=arguments.steps,
            kills=arguments.kills,
            seed=arguments.seed,
            folder=folder,
            say=print,
        )
        for name in sorted({*found.unbroken, *found.broken}):
            print(f"  {name:<22} unbroken {found.unbroken.get(name, '-')}")
            print(f"  {'':<22} killed   {found.broken.get(name, '-')}")
        emit(asdict(found) | {"differing": found.differing})
        if found.differing:
            raise OrchestratorError(
                f"not the same after {found.steps} steps: {', '.join(found.differing)} differ. "
                f"Both runs are in {folder}. Next: set train.deterministic to true, and see that "
                "nothing in the data changes between two reads"
            )
        print(
            f"the same bits after {found.steps} steps and {found.kills} kills; "
            f"a kill cost {found.redone} steps at most"
        )
    return 0


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder that goes away at the end, unless the error that is raised names it."""
    folder = Path(tempfile.mkdtemp(prefix="check-resume-"))
    try:
        yield folder
    except BaseException as error:
        if str(folder) not in str(error):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
