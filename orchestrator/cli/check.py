"""``orchestrator check``: examine the data set of an experiment before anything is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli._shared.parser import Parser

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.config.schema import Experiment
    from orchestrator.data.label_map import LabelMap

_AUGMENTED_IMAGES = 24


def main(argv: Sequence[str]) -> int:
    """Print what was found, write what was asked for, and return the code a run would end with."""
    parser = Parser(
        prog="orchestrator check",
        description="examine the data set of an experiment: annotations, every image file, "
        "classes, sizes, duplicates, and how well the detector's priors fit",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report for programs")
    parser.add_argument("--page", type=Path, metavar="FILE.html", help="write a page of pictures")
    parser.add_argument(
        "--show-augmented",
        type=Path,
        metavar="FILE.jpg",
        help="write a sheet of training images as the network gets them",
    )
    arguments = parser.parse_args(argv)

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from orchestrator.config.resolve import load_experiment
    from orchestrator.data.doctor.examine import examine
    from orchestrator.data.doctor.page import page
    from orchestrator.storage.atomic import write_atomic

    experiment = load_experiment(arguments.experiment, arguments.overrides).experiment
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {name: bars.add_task(name, total=None) for name in ("train", "val")}
        examination = examine(
            experiment.data,
            priors=lambda label_map: _priors(experiment, label_map),
            watch=lambda split, seen, total: bars.update(tasks[split], completed=seen, total=total),
            keep=True,
        )
    report = examination.report
    for name, facts in report.splits.items():
        print(
            f"{name}: {facts['images']} images, {facts['boxes']} boxes, "
            f"{len(facts['classes'])} classes, digest {facts['content_digest']}"
        )
        if "manifest" in facts:
            print(f"  manifest {facts['manifest']}")
    for one in sorted(report.diagnoses, key=lambda one: -one.verdict):
        print(one)
    print(f"verdict: {report.to_json()['verdict']}")
    if arguments.json:
        write_atomic(arguments.json, json.dumps(report.to_json(), indent=2).encode())
    if arguments.page:
        html = page(f"Data of {experiment.name}", report, examination.splits)
        write_atomic(arguments.page, html.encode())
    if arguments.show_augmented and not report.exit_code:
        write_atomic(
            arguments.show_augmented, _augmented(arguments.experiment, arguments.overrides)
        )
    return report.exit_code


def _priors(
    experiment: Experiment, label_map: LabelMap
) -> tuple[NDArray[np.float32] | None, tuple[int, int]]:
    from detectors.registry import build_detector

    detector = build_detector(experiment.detector, num_classes=len(label_map))
    boxes = detector.prior_boxes()
    return None if boxes is None else boxes.numpy(), detector.input_size


def _augmented(experiment: str, overrides: Sequence[str]) -> bytes:
    """The first images of the run, as a JPEG file."""
    from orchestrator.config.resolve import load_experiment
    from orchestrator.data.doctor.pictures import batch_sheet
    from orchestrator.pages.drawing import encode_jpeg
    from orchestrator.runs.plan import make_plan

    plan = make_plan(load_experiment(experiment, overrides), Path.cwd()).batches
    steps = -(-_AUGMENTED_IMAGES // plan.schedule.batch_size)
    batches = (
        plan.train_batch(step, 0, 1) for step in range(min(steps, plan.schedule.total_steps))
    )
    return encode_jpeg(batch_sheet(batches), quality=85)
