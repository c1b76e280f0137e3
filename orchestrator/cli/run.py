"""``orchestrator run``: one experiment file in, a trained, evaluated detector, or many, out.

On this machine or inside a ``ray job submit``, also as ``python -m orchestrator.run``. Running the
same command again goes on where the run stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.parser import Parser
from orchestrator.cli.config import add_sweep, show_template
from orchestrator.memory import importing


def main(argv: Sequence[str]) -> int:
    """Run an experiment; returns the exit code."""
    parser = Parser(
        prog="orchestrator run",
        description="train and evaluate as an experiment file says",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    add_sweep(parser)
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the resolved experiment with the origin of each value, and stop",
    )
    parser.add_argument(
        "--force-resume",
        action="store_true",
        help="go on with a run folder although its experiment or data has changed",
    )
    add_json(parser)
    arguments = parser.parse_args(argv)
    from orchestrator.config.resolve import read_template

    # Everything that is wrong with the file is said before Ray is even imported.
    template = read_template(arguments.experiment, arguments.overrides, sweep=arguments.sweep)
    if arguments.print_config:
        show_template(template)
        return 0
    resolved = template.resolve()
    from orchestrator.config.places import folder_of
    from orchestrator.storage.run_files import RESULT, SWEEP_RESULT
    from orchestrator.training.interrupt import stopping_at_once

    sweep = resolved.experiment.sweep is not None
    folder = folder_of(resolved.experiment)
    # What follows imports for seconds.
    with stopping_at_once(), json_output(arguments.json) as emit:
        if sweep:
            with importing():
                from orchestrator.sweeps.driver import drive_sweep

            code = drive_sweep(template, force_resume=arguments.force_resume)
        else:
            with importing():
                from orchestrator.runs.driver import drive

            code = drive(resolved, folder, force_resume=arguments.force_resume)
        if arguments.json:
            result = json.loads((folder / (SWEEP_RESULT if sweep else RESULT)).read_bytes())
            emit({"folder": folder, "result": result})
    return code
