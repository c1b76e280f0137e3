"""``orchestrator evaluate``: COCO numbers of a trained detector, and where they come from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.detector import (
    add_detect_options,
    add_source_options,
    detect_options,
    load,
    split_overrides,
)
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.evaluation.analysis import Analysis


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the numbers and write what is behind them."""
    parser = Parser(
        prog="orchestrator evaluate",
        description="the 12 COCO numbers, scores by class, size and aspect, curves, confusion, "
        "kinds of error with the AP each costs, and calibration",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|CHECKPOINT|WEIGHTS [key.path=value ...]",
        help="the detector, and values of the experiment to change",
    )
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="of the data set (default: val)"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="score this COCO results file instead of running the detector",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where results and numbers are written (default: RUN/evaluation, or ./evaluation)",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of each (default 1)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images at a time (default: as in training)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images alone")
    add_source_options(parser)
    add_detect_options(parser)
    arguments = parser.parse_intermixed_args(argv)
    overrides, sources = split_overrides(arguments.words)
    if len(sources) != 1:
        raise ConfigError(f"{parser.prog}: expected one detector, found {sources or 'none'}")
    for name in ("workers", "threads", "batch"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    return _evaluate(sources[0], overrides, arguments)


def _evaluate(source: str, overrides: list[str], arguments: Any) -> int:
    from rich.console import Console

    from orchestrator.evaluation.analysis import analyse
    from orchestrator.evaluation.results import Results, read_results
    from orchestrator.predict.scoring import evaluate_detector, read_split, write_evaluation

    console = Console(soft_wrap=True)
    loaded = load(source, overrides, arguments)
    how = detect_options(loaded, arguments)
    dataset = read_split(loaded.resolved.experiment, arguments.split, limit=arguments.limit)
    started = time.perf_counter()
    about: dict[str, Any] = {"detector": loaded.title, "split": arguments.split}
    if arguments.predictions is not None:
        results = read_results(arguments.predictions, dataset)
        analysis = analyse(dataset, results)
        about |= {"predictions": str(arguments.predictions)}
    else:
        done = evaluate_detector(
            loaded,
            dataset,
            how,
            workers=arguments.workers,
            threads=arguments.threads,
            batch_size=arguments.batch,
        )
        results, analysis = Results.of(done.detections), done.analysis
        for line in done.unreadable:
            _say(console, f"unreadable, its boxes count as missed: {line}")
        about |= {
            "weights_sha256": loaded.weights_sha256,
            "postprocess": how.postprocess.model_dump(mode="json"),
            "scales": list(how.views.scales),
            "flip": how.views.flip,
            "fusion": how.fusion,
        }
    about |= {
        "config_digest": loaded.resolved.digest,
        "data_digest": dataset.digest,
        "images": len(dataset),
    }
    seconds = time.perf_counter() - started
    folder = arguments.output or (loaded.run_dir or Path()) / "evaluation"
    files = write_evaluation(folder, results, analysis, about)
    _show(console, loaded.title, analysis)
    _say(
        console,
        f"{len(dataset)} images, {len(results)} detections in {seconds:.1f} s; matched by "
        f"{analysis.backend}",
    )
    _say(console, f"written: {', '.join(str(path) for path in files.values())}")
    return 0


def _show(console: Console, title: str, analysis: Analysis) -> None:
    from rich.table import Table

    numbers = Table("metric", "value", title=title)
    for name, value in analysis.metrics.numbers.items():
        numbers.add_row(name, _number(value))
    console.print(numbers)
    classes = Table("class", "boxes", "detections", "AP", "AP50", "AP75", "AR100")
    for one in analysis.metrics.classes:
        scores = (one.ap, one.ap50, one.ap75, one.ar100)
        classes.add_row(one.name, str(one.boxes), str(one.detections), *map(_number, scores))
    console.print(classes)
    errors = Table("error at IoU 0.5", "count", "AP50 it costs")
    for name, count in analysis.errors.counts.items():
        errors.add_row(name, str(count), f"{analysis.errors.costs[name]:.4f}")
    console.print(errors)


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.4f}"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)
