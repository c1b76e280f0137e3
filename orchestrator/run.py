"""The driver: one experiment file in, a trained, evaluated and tracked detector, or many, out.

``python -m orchestrator.run EXPERIMENT.yaml [key.path=value ...]``, on this machine or inside a
``ray job submit``. Running the same command again goes on where the run stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.cli.exit import run_guarded
from orchestrator.cli.parser import Parser
from orchestrator.config.printing import print_config
from orchestrator.config.resolve import ResolvedExperiment, read_template


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; ``argv`` without the program's name. Returns the exit code."""
    return run_guarded(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m orchestrator.run",
        description="train and evaluate as an experiment file says",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--sweep",
        metavar="SWEEP.yaml",
        help="a file with a sweep section, which takes the place of the experiment's own",
    )
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
    arguments = parser.parse_args(argv)
    # Everything that is wrong with the file is said before Ray is even imported.
    template = read_template(arguments.experiment, arguments.overrides, sweep=arguments.sweep)
    resolved = template.resolve()
    if arguments.print_config:
        sys.stdout.write(print_config(resolved))
        return 0
    if resolved.experiment.sweep is not None:
        from orchestrator.sweeps.driver import drive_sweep

        return drive_sweep(template, force_resume=arguments.force_resume)
    return run(resolved, force_resume=arguments.force_resume)


def run(resolved: ResolvedExperiment, *, force_resume: bool = False) -> int:
    """Check, train, evaluate and report one experiment.

    Raises:
        OrchestratorError: with the exit code of its class.
    """
    from orchestrator.training.driver import drive
    from orchestrator.training.home import folder_of

    return drive(resolved, folder_of(resolved.experiment), force_resume=force_resume)


if __name__ == "__main__":
    sys.exit(main())
