"""``orchestrator compare``: runs beside each other, and whether one is better than another."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.detector import split_overrides
from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import Parser, number_between
from orchestrator.cli._shared.tables import columns
from orchestrator.errors import ConfigError, printable, say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.runs.compare.comparison import Comparison

#: More runs than this stand in lines of a table instead of columns.
_MOST_COLUMNS = 5


def main(argv: Sequence[str]) -> int:
    """Compare, and print tables, JSON or a page."""
    parser = Parser(
        prog="orchestrator compare",
        description="what was set differently in runs, what came of it, and whether the difference "
        "in AP is more than luck with the validation images (paired bootstrap)",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|SWEEP ... [key.path=value ...]",
        help="run folders, or a sweep's folder for all its trials; values of the experiments to "
        "change, such as data.root where the data has moved",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="run that the others are compared with (default: the first)",
    )
    parser.add_argument(
        "--html", type=file_to_write, metavar="FILE", help="write a page with the charts"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead")
    parser.add_argument(
        "--level",
        type=number_between(0.5, 1, ends="[)"),
        default=0.95,
        metavar="P",
        help="of confidence (default: 0.95)",
    )
    parser.add_argument(
        "--resamples",
        type=number_between(100, whole=True),
        default=2000,
        metavar="N",
        help="draws (default: 2000)",
    )
    arguments = parser.parse_args(argv)
    overrides, folders = split_overrides(arguments.words)
    if not folders:
        raise ConfigError(f"{parser.prog}: expected run folders, found none")

    from orchestrator.storage.run_files import RUN_OR_SWEEP, require_there

    require_there(*map(Path, folders), what=RUN_OR_SWEEP)

    from rich.console import Console

    from orchestrator.runs.compare.comparison import compare_runs
    from orchestrator.runs.compare.run_folder import read_runs, run_named

    runs = read_runs([Path(folder) for folder in folders], overrides)
    for run in runs:
        for trouble in run.troubles:
            print(printable(f"warning: {run.path}: {trouble}"), file=sys.stderr)
    named = arguments.baseline
    comparison = compare_runs(
        runs,
        baseline=None if named is None else run_named(runs, named),
        level=arguments.level,
        resamples=arguments.resamples,
    )
    if arguments.json:
        print(json.dumps(comparison.to_json(), indent=1, allow_nan=False))
    else:
        _show(Console(soft_wrap=True), comparison)
    if arguments.html is not None:
        from orchestrator.runs.compare.page import write_page

        write_page(arguments.html, comparison)
        if not arguments.json:
            print(f"written: {arguments.html}")
    return 0


def _show(console: Console, comparison: Comparison) -> None:
    if len(comparison.runs) <= _MOST_COLUMNS:
        _show_columns(console, comparison)
    else:
        _show_lines(console, comparison)
    _show_seeds(console, comparison)
    for contrast in comparison.contrasts:
        console.print()
        say(console, contrast.verdict)
        if contrast.note and contrast.significance is not None:
            say(console, contrast.note)
    _show_classes(console, comparison)


def _show_columns(console: Console, comparison: Comparison) -> None:
    """A column for every run."""
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.evaluation.coco import METRICS
    from orchestrator.runs.compare.comparison import value_text

    runs = comparison.runs
    if comparison.settings:
        settings = Table(*columns("set differently", *(run.name for run in runs)))
        for path, values in comparison.settings.items():
            settings.add_row(path, *(escape(printable(value_text(value))) for value in values))
        console.print(settings)
    numbers = Table(*columns("", *(run.name for run in runs)))
    numbers.add_row("state", *(run.state for run in runs))
    numbers.add_row("steps", *(str(run.steps) for run in runs))
    for name in METRICS:
        numbers.add_row(name, *(_number(run.metrics.get(name)) for run in runs))
    console.print(numbers)


def _show_lines(console: Console, comparison: Comparison) -> None:
    """A line for every run, best first."""
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.runs.compare.comparison import value_text

    settings = comparison.settings
    names = ("AP", "AP50", "AP75", "AR100")
    keys = (path.rpartition(".")[2] for path in settings)
    table = Table(*columns("run", "state", "steps", *keys, *names))
    order = sorted(
        range(len(comparison.runs)), key=lambda i: -comparison.runs[i].metrics.get("AP", -1.0)
    )
    for i in order:
        run = comparison.runs[i]
        values = (escape(printable(value_text(values[i]))) for values in settings.values())
        scores = (_number(run.metrics.get(name)) for name in names)
        table.add_row(escape(run.name), run.state, str(run.steps), *values, *scores)
    console.print(table)


def _show_seeds(console: Console, comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.runs.compare.page import spread_words

    names = ("AP", "AP50", "AP75")
    table = Table(*columns("experiment", "seeds", *names))
    for group in comparison.groups:
        if len(group.by_seed) > 1:
            seeds = ", ".join(str(run.seed) for run in group.by_seed)
            table.add_row(
                escape(group.name), seeds, *(spread_words(group.metric(name)) for name in names)
            )
    if table.row_count:
        console.print(table)


def _show_classes(console: Console, comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.runs.compare.page import effect_row, method_words

    told = [one for one in comparison.contrasts if one.significance is not None]
    if len(comparison.runs) > _MOST_COLUMNS or not told:
        return
    for contrast in told:
        found = contrast.significance
        if found is not None:
            title = f"{contrast.after} against {contrast.before}"
            rest = ("before", "after", "difference", f"{found.level:.0%} interval", "p", "")
            table = Table(*columns(title, *rest))
            for name, effect in {**found.numbers, **found.classes}.items():
                table.add_row(*effect_row(escape(printable(name)), effect))
            console.print(table)
            console.print(method_words(found), highlight=False, markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None or value < 0 else f"{value:.4f}"
