"""The console script ``orchestrator``: one verb, one file in this folder, one line below."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orchestrator.cli import config, draw, evaluate, export, predict, report, run, submit
from orchestrator.cli.exit import run_guarded
from orchestrator.errors import ConfigError, nearest


class Verb(NamedTuple):
    """A subcommand.

    Attributes:
        main: takes the arguments after the verb and returns the exit code. It imports what it needs
            itself, so that no verb waits for the imports of another.
        summary: one line for the help.
    """

    main: Callable[[Sequence[str]], int]
    summary: str


VERBS: dict[str, Verb] = {
    "run": Verb(run.main, "train and evaluate as an experiment file says"),
    "submit": Verb(submit.main, "run an experiment on a Ray cluster that is already there"),
    "evaluate": Verb(evaluate.main, "COCO numbers of a trained detector, and where they come from"),
    "predict": Verb(predict.main, "detections in images, folders, lists and videos"),
    "draw": Verb(draw.main, "predictions and ground truth on the images"),
    "export": Verb(export.main, "a detector as one ONNX or pt2 file, compared with PyTorch"),
    "report": Verb(report.main, "one HTML page about a run"),
    "config": Verb(config.main, "show a resolved experiment, or the schema of experiment files"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; ``argv`` without the program's name."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return run_guarded(lambda: _dispatch(arguments))


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not arguments:
        raise ConfigError(_usage())
    name, *rest = arguments
    verb = VERBS.get(name)
    if verb is None:
        guess = nearest(name, VERBS)
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise ConfigError(f"unknown command '{name}'{hint}\n\n{_usage()}")
    return verb.main(rest)


def _usage() -> str:
    lines = [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: orchestrator COMMAND …", "", *lines, "", "orchestrator COMMAND --help shows more"]
    )


if __name__ == "__main__":
    sys.exit(main())
