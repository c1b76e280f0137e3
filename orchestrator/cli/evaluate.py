"""``orchestrator evaluate``: COCO numbers of a trained detector, and where they come from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.cli._shared.bars import bars
from orchestrator.cli._shared.detector import (
    add_detect_options,
    add_source_options,
    detect_options,
    load,
    name,
    require_source,
    split_overrides,
)
from orchestrator.cli._shared.json_output import add_json, json_output
from orchestrator.cli._shared.outputs import folder_to_fill
from orchestrator.cli._shared.parser import COUNT, Parser
from orchestrator.cli._shared.tables import columns
from orchestrator.errors import ConfigError, printable, say

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.data.dataset import Dataset
    from orchestrator.evaluation.analysis import Analysis
    from orchestrator.evaluation.results import Results
    from orchestrator.predict.loading import NamedDetector


def main(argv: Sequence[str]) -> int:
    """Evaluate, print the numbers and write what is behind them."""
    parser = Parser(
        prog="orchestrator evaluate",
        description="the 12 COCO numbers, scores by class, size and aspect, curves, confusion, "
        "kinds of error with the AP each costs, and calibration",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN|CHECKPOINT|WEIGHTS [key.path=value ...]",
        help="the detector, and values of the experiment to change; none is needed with "
        "--predictions and --annotations",
    )
    parser.add_argument(
        "--split", choices=("val", "train"), default="val", help="of the data set (default: val)"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="score this COCO results file instead of running the detector; its category ids are "
        "the detector's where one is named, else those of --annotations",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file that predictions are scored against (default: the split of the experiment)",
    )
    parser.add_argument(
        "--max-detections",
        type=COUNT,
        metavar="N",
        help="AP and AR with up to N detections of a class in an image as well, for crowded images",
    )
    parser.add_argument(
        "--output",
        type=folder_to_fill,
        metavar="FOLDER",
        help="where results and numbers are written (default: RUN/evaluation, or ./evaluation; "
        "with --limit evaluation-first-N)",
    )
    parser.add_argument(
        "--workers", type=COUNT, default=1, metavar="N", help="processes (default 1)"
    )
    parser.add_argument(
        "--threads", type=COUNT, default=1, metavar="N", help="CPU threads of each (default 1)"
    )
    parser.add_argument(
        "--batch", type=COUNT, metavar="N", help="images at a time (default: as in training)"
    )
    parser.add_argument("--limit", type=COUNT, metavar="N", help="the first N images alone")
    add_source_options(parser)
    add_detect_options(parser)
    add_json(parser)
    arguments = parser.parse_args(argv)
    overrides, sources = split_overrides(arguments.words)
    if arguments.annotations is not None and arguments.predictions is None:
        raise ConfigError("--annotations: is what --predictions are scored against; name those")
    if sources:
        require_source(sources[0])
    with json_output(arguments.json) as emit:
        if not sources and not overrides and arguments.annotations is not None:
            emit(_score(arguments))
        elif len(sources) != 1:
            raise ConfigError(
                f"{parser.prog}: expected one RUN, CHECKPOINT or WEIGHTS, found "
                f"{' '.join(sources) or 'none'}"
            )
        elif arguments.predictions is not None:
            emit(_score_of_detector(sources[0], overrides, arguments))
        else:
            emit(_evaluate(sources[0], overrides, arguments))
    return 0


def _score(arguments: Any) -> dict[str, Any]:
    """Score a results file against annotations, without any detector; the document."""
    from rich.console import Console

    from orchestrator.evaluation.analysis import analyse
    from orchestrator.evaluation.results import read_results
    from orchestrator.predict.scoring import read_annotations, results_of_first

    folder = _folder(arguments, None)
    dataset = read_annotations(arguments.annotations)
    started = time.perf_counter()
    results = read_results(arguments.predictions, dataset)
    dataset, results = results_of_first(dataset, results, arguments.limit)
    analysis = analyse(dataset, results)
    about = {"predictions": str(arguments.predictions), "annotations": str(arguments.annotations)}
    outcome = _Outcome(dataset, results, analysis, about, time.perf_counter() - started)
    console = Console(soft_wrap=True)
    return _finish(console, str(arguments.predictions), outcome, folder, arguments)


def _score_of_detector(source: str, overrides: list[str], arguments: Any) -> dict[str, Any]:
    """Score a results file that has the category ids of a detector, whose weights stay unread."""
    from rich.console import Console

    from orchestrator.evaluation.analysis import analyse
    from orchestrator.predict.scoring import read_detectors_results, results_of_first

    console = Console(soft_wrap=True)
    named = name(source, overrides, arguments)
    folder = _folder(arguments, named.run_dir)
    dataset = _dataset(named, arguments)
    started = time.perf_counter()
    results, note = read_detectors_results(arguments.predictions, dataset, named)
    if note is not None:
        say(console, note)
    dataset, results = results_of_first(dataset, results, arguments.limit)
    analysis = analyse(dataset, results)
    about = {"detector": named.title, "split": arguments.split}
    about |= {"predictions": str(arguments.predictions)}
    if arguments.annotations is not None:
        about |= {"annotations": str(arguments.annotations)}
    about |= {"config_digest": named.resolved.digest}
    outcome = _Outcome(dataset, results, analysis, about, time.perf_counter() - started)
    return _finish(console, named.title, outcome, folder, arguments)


def _folder(arguments: Any, run_dir: Path | None) -> Path:
    """Where results and numbers are written, found writable before there are any."""
    if arguments.output is not None:
        return Path(arguments.output)
    # Numbers of some images do not take the place of those of all.
    place = "evaluation" if arguments.limit is None else f"evaluation-first-{arguments.limit}"
    return folder_to_fill(str((run_dir or Path()) / place))


def _dataset(detector: NamedDetector, arguments: Any) -> Dataset:
    """The images and boxes to score against, all of them."""
    from orchestrator.predict.scoring import read_annotations, read_split

    if arguments.annotations is not None:
        return read_annotations(arguments.annotations)
    return read_split(detector.resolved.experiment, arguments.split)


def _evaluate(source: str, overrides: list[str], arguments: Any) -> dict[str, Any]:
    """Run the detector on a split and score what it finds."""
    from rich.console import Console

    from orchestrator.evaluation.results import Results
    from orchestrator.predict.scoring import evaluate_detector, first_images

    console = Console(soft_wrap=True)
    loaded = load(source, overrides, arguments)
    how = detect_options(loaded, arguments)
    dataset = _dataset(loaded, arguments)
    if arguments.limit is not None:
        dataset = first_images(dataset, arguments.limit)
    folder = _folder(arguments, loaded.run_dir)
    started = time.perf_counter()
    with bars("detecting") as bar:
        task = bar.add_task("images", total=len(dataset))
        done = evaluate_detector(
            loaded,
            dataset,
            how,
            workers=arguments.workers,
            threads=arguments.threads,
            batch_size=arguments.batch,
            on_progress=lambda images: bar.update(task, completed=images),
        )
    results, analysis = Results.of(done.detections), done.analysis
    for line in done.unreadable:
        say(console, f"unreadable, its boxes count as missed: {line}")
    about = {
        "detector": loaded.title,
        "split": arguments.split,
        "weights_sha256": loaded.weights_sha256,
        "postprocess": how.postprocess.model_dump(mode="json"),
        "scales": list(how.views.scales),
        "flip": how.views.flip,
        "fusion": how.fusion,
        "tiles": None if how.tiles is None else [*how.tiles.size, how.tiles.overlap],
        "config_digest": loaded.resolved.digest,
    }
    outcome = _Outcome(dataset, results, analysis, about, time.perf_counter() - started)
    return _finish(console, loaded.title, outcome, folder, arguments)


class _Outcome(NamedTuple):
    """What was scored, and with what result."""

    dataset: Dataset
    results: Results
    analysis: Analysis
    about: dict[str, Any]
    seconds: float


def _finish(
    console: Console, title: str, outcome: _Outcome, folder: Path, arguments: Any
) -> dict[str, Any]:
    """Write the files and print the numbers; the document for programs."""
    from orchestrator.data.doctor.image_notes import crowded
    from orchestrator.evaluation.coco import at_limit
    from orchestrator.predict.scoring import write_evaluation

    dataset, results, analysis, about, seconds = outcome
    about |= {"data_digest": dataset.digest, "images": len(dataset)}
    limit = arguments.max_detections
    beside = {} if limit is None else at_limit(dataset, results, limit)
    if limit is not None:
        about |= {"max_detections": limit, "at_max_detections": beside}
    files = write_evaluation(folder, results, analysis, about)
    _show(console, title, analysis, beside)
    note = crowded(dataset)
    if note is not None and limit is None:
        say(console, str(note))
    if analysis.score_note:
        say(console, f"warning: {analysis.score_note}")
    elsewhere = analysis.errors.counts["classification"]
    if arguments.predictions is not None and elsewhere > len(results) / 2:
        say(
            console,
            f"{elsewhere} of {len(results)} detections lie on a box of another class: see whether "
            f"the category ids of {arguments.predictions} are those of the annotations",
        )
    say(
        console,
        f"{len(dataset)} images, {len(results)} detections in {seconds:.1f} s; matched by "
        f"{analysis.backend}",
    )
    say(console, f"written: {', '.join(str(path) for path in files.values())}")
    return {"about": about, **analysis.to_json(), "files": files}


def _show(console: Console, title: str, analysis: Analysis, beside: dict[str, float]) -> None:
    from rich.markup import escape
    from rich.table import Table

    numbers = Table("metric", "value", title=escape(printable(title)))
    for metric, value in {**analysis.metrics.numbers, **beside}.items():
        numbers.add_row(metric, _number(value))
    console.print(numbers)
    classes = Table(*columns("class", "boxes", "detections", "AP", "AP50", "AP75", "AR100"))
    for one in analysis.metrics.classes:
        scores = (one.ap, one.ap50, one.ap75, one.ar100)
        shown = escape(printable(one.name))
        classes.add_row(shown, str(one.boxes), str(one.detections), *map(_number, scores))
    console.print(classes)
    errors = Table("error at IoU 0.5", "count", "AP50 it costs")
    for kind, count in analysis.errors.counts.items():
        errors.add_row(kind, str(count), f"{analysis.errors.costs[kind]:.4f}")
    console.print(errors)


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.4f}"
