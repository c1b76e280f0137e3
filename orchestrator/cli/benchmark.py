"""``orchestrator benchmark``: how fast an experiment is here, and where its time goes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import file_to_write
from orchestrator.cli._shared.parser import COUNT, Parser, number_between
from orchestrator.errors import ConfigError
from orchestrator.storage.run_files import RESOLVED

#: The seeds' performance mode leaves out the first six steps.
_SKIP = 6


def main(argv: Sequence[str]) -> int:
    """Measure, print, write, compare."""
    parser = Parser(
        prog="orchestrator benchmark",
        description="training steps by part, evaluation, latency and throughput of detection by "
        "batch size, and memory, in one process on this machine, from random weights",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml|RUN")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--steps", type=COUNT, default=20, metavar="N", help="steps (default: 20)")
    parser.add_argument(
        "--skip",
        type=number_between(0, whole=True),
        default=_SKIP,
        metavar="N",
        help="first steps left out (default: 6)",
    )
    parser.add_argument(
        "--batches", default="1,8", metavar="N,N", help="batch sizes of detection (default: 1,8)"
    )
    parser.add_argument(
        "--repeats", type=COUNT, default=20, metavar="N", help="batches of each size (default: 20)"
    )
    parser.add_argument(
        "--output", type=file_to_write, metavar="FILE.json", help="write the result"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FILE.json", help="compare with an earlier result"
    )
    parser.add_argument(
        "--trace",
        type=file_to_write,
        metavar="FILE.json",
        help="trace of three steps for a profiler's UI",
    )
    add_json(parser)
    arguments = parser.parse_args(argv)
    batches = _batches(arguments.batches)

    from orchestrator.config.resolve import load_experiment

    source = Path(arguments.experiment)
    file = source / RESOLVED if source.is_dir() else source
    experiment = load_experiment(file, arguments.overrides)

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from orchestrator.benchmark.measure import benchmark
    from orchestrator.benchmark.result import BenchmarkResult, differences, rows
    from orchestrator.storage.atomic import write_atomic

    with json_output(arguments.json) as emit:
        against = None if arguments.against is None else BenchmarkResult.read(arguments.against)
        result = benchmark(
            experiment,
            steps=arguments.steps,
            skip=arguments.skip,
            batches=batches,
            repeats=arguments.repeats,
            trace=arguments.trace,
        )
        head = ["", "now", "unit", *([] if against is None else ["then", "now / then"])]
        title = f"{result.detector}, {result.precision}, {result.threads} threads"
        table = Table(*head, title=escape(title))
        for row in rows(result, against):
            table.add_row(*map(escape, row))
        Console(soft_wrap=True).print(table)
        print(f"{result.hardware}; {result.code}")
        for line in [] if against is None else differences(result, against):
            print(f"differs: {line}")
        if arguments.output is not None:
            write_atomic(arguments.output, result.to_json().encode("utf-8"))
            print(f"written: {arguments.output}")
        emit(json.loads(result.to_json()))
    return 0


def _batches(text: str) -> list[int]:
    sizes = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(sizes) < 1:
        raise ConfigError(f"--batches {text}: expected numbers with commas between, such as 1,4,16")
    return sizes
