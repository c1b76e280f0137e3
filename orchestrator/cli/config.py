"""``orchestrator config``: look at an experiment without running it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrator.cli._shared.parser import COUNT, Parser
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from orchestrator.config.resolve import Template


def main(argv: Sequence[str]) -> int:
    """Print a resolved experiment, its schedule, or the JSON Schema of experiment files."""
    parser = Parser(prog="orchestrator config", description="look at an experiment")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser(
        "show", help="print the resolved experiment with the origin of each value"
    )
    show.add_argument("experiment", metavar="EXPERIMENT.yaml")
    show.add_argument("overrides", nargs="*", metavar="key.path=value")
    add_sweep(show)
    schedule = actions.add_parser(
        "show-schedule", help="print learning rate, momentum and the like by step"
    )
    schedule.add_argument("experiment", metavar="EXPERIMENT.yaml")
    schedule.add_argument("overrides", nargs="*", metavar="key.path=value")
    schedule.add_argument(
        "--images",
        type=COUNT,
        metavar="N",
        help="training images; without it the data set is read to count them",
    )
    schedule.add_argument("--json", action="store_true", help="for programs")
    actions.add_parser("schema", help="print the JSON Schema, for editors")
    arguments = parser.parse_args(argv)
    if arguments.action == "show":
        from orchestrator.config.resolve import read_template

        template = read_template(arguments.experiment, arguments.overrides, sweep=arguments.sweep)
        show_template(template)
    elif arguments.action == "show-schedule":
        _show_schedule(
            arguments.experiment,
            arguments.overrides,
            images=arguments.images,
            as_json=arguments.json,
        )
    else:
        _schema()
    return 0


def add_sweep(parser: ArgumentParser) -> None:
    """Add ``--sweep``, a file with the sweep section of an experiment."""
    parser.add_argument(
        "--sweep",
        metavar="SWEEP.yaml",
        help="a file with a sweep section, which takes the place of the experiment's own",
    )


def show_template(template: Template) -> None:
    """Print an experiment with the origin of each value, if it could be run."""
    from orchestrator.config.printing import print_config

    resolved = template.resolve()
    if resolved.experiment.sweep is not None:
        from orchestrator.sweeps.plan import check_sweep

        check_sweep(template, resolved)
    print(print_config(resolved), end="")


def _show_schedule(
    experiment: str, overrides: Sequence[str], *, images: int | None, as_json: bool
) -> None:
    from orchestrator.config.resolve import load_experiment
    from orchestrator.training.schedule_table import ScheduleTable

    resolved = load_experiment(experiment, overrides)
    if images is None:
        from orchestrator.runs.plan import count_training_images

        try:
            images = count_training_images(resolved.experiment)
        except DataError as error:
            raise DataError(f"{error}\nWith --images N the data set is not needed") from error
    table = ScheduleTable(resolved.experiment, images)
    print(json.dumps(table.to_json(), indent=2) if as_json else table.to_text())


def _schema() -> None:
    from orchestrator.config.shape import published_schema

    print(json.dumps(published_schema(), indent=2))
