"""``orchestrator check``: examine the data set of an experiment before anything is started."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.bars import bars
from orchestrator.cli._shared.detector import require_source
from orchestrator.cli._shared.outputs import file_to_write, folder_to_fill
from orchestrator.cli._shared.parser import Parser
from orchestrator.errors import ConfigError, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from orchestrator.config.schema import Experiment
    from orchestrator.data.dataset import Dataset
    from orchestrator.data.label_map import LabelMap

_AUGMENTED_IMAGES = 24
_SUSPECTS_SAID = 10


def main(argv: Sequence[str]) -> int:
    """Print what was found, write what was asked for, and return the code a run would end with."""
    parser = Parser(
        prog="orchestrator check",
        description="examine the data set of an experiment: annotations, every image file, "
        "classes, sizes, duplicates, and how well the detector's priors fit",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    parser.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="write the report for programs"
    )
    parser.add_argument(
        "--page", type=file_to_write, metavar="FILE.html", help="write a page of pictures"
    )
    parser.add_argument(
        "--show-augmented",
        type=file_to_write,
        metavar="FILE.jpg",
        help="write a sheet of training images as the network gets them",
    )
    parser.add_argument(
        "--suggest-priors",
        action="store_true",
        help="search for priors that fit the training boxes better, and print them as YAML lines "
        "with the recall before and after",
    )
    parser.add_argument(
        "--with",
        dest="detector",
        metavar="RUN|CHECKPOINT",
        help="list the boxes that this trained detector contradicts, most suspicious first",
    )
    parser.add_argument(
        "--suspects",
        type=folder_to_fill,
        metavar="FOLDER",
        help="where --with leaves suspects.json, .csv and .html (default: ./suspects)",
    )
    arguments = parser.parse_args(argv)
    if arguments.suspects is not None and arguments.detector is None:
        raise ConfigError("--suspects: is where --with RUN leaves its lists; name a run")

    from orchestrator.config.resolve import load_experiment

    experiment = load_experiment(arguments.experiment, arguments.overrides).experiment
    if arguments.detector is not None:
        require_source(arguments.detector)

    from orchestrator.data.doctor.examine import examine
    from orchestrator.data.doctor.page import page
    from orchestrator.storage.atomic import write_atomic

    with bars() as shown:
        tasks = {name: shown.add_task(name, total=None) for name in ("train", "val")}
        examination = examine(
            experiment.data,
            priors=lambda label_map: _priors(experiment, label_map),
            watch=lambda split, seen, total: shown.update(
                tasks[split], completed=seen, total=total
            ),
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
    written = [path for path in (arguments.json, arguments.page) if path]
    if arguments.json:
        write_atomic(arguments.json, json.dumps(report.to_json(), indent=2).encode())
    if arguments.page:
        html = page(f"Data of {experiment.name}", report, examination.splits)
        write_atomic(arguments.page, html.encode("utf-8", "backslashreplace"))
    if arguments.show_augmented and not report.exit_code:
        write_atomic(
            arguments.show_augmented, _augmented(arguments.experiment, arguments.overrides)
        )
        written.append(arguments.show_augmented)
    if written:
        print(f"written: {', '.join(map(str, written))}", file=sys.stderr)
    if report.exit_code:
        wanted = {
            "--show-augmented": arguments.show_augmented,
            "--suggest-priors": arguments.suggest_priors,
            "--with": arguments.detector,
        }
        if left := [option for option, value in wanted.items() if value]:
            print(f"not done, since no run starts on this data: {', '.join(left)}", file=sys.stderr)
        return report.exit_code
    if arguments.suggest_priors:
        _suggest_priors(experiment, examination.splits)
    if arguments.detector is not None:
        _contradicted(experiment, examination.splits, arguments)
    return 0


def _suggest_priors(experiment: Experiment, splits: Mapping[str, Dataset]) -> None:
    from detectors.registry import build_detector
    from orchestrator.data.doctor.examine import in_tiles, view_of
    from orchestrator.data.doctor.suggest import suggest_priors

    config = experiment.detector
    detector = build_detector(config, num_classes=1)
    seen = {name: in_tiles(data, experiment.data) for name, data in splits.items()}
    boxes = detector.prior_boxes()
    if boxes is None or not config.prior_choices([]):
        print(f"priors: {config.title} has none that its section could change")
        return

    def priors(changes: Mapping[str, Any]) -> NDArray[np.float32]:
        tree = config.model_dump(mode="json")
        for key, value in changes.items():
            *path, last = key.split(".")
            place = tree
            for part in path:
                place = place[part]
            place[last] = value
        changed = type(config).model_validate_json(json.dumps(tree))
        found = build_detector(changed, num_classes=1).prior_boxes()
        assert found is not None, "the same detector has priors"
        return found.numpy()

    view = view_of(experiment.data.augmentation, detector.input_size)
    found = suggest_priors(seen, priors, config.prior_choices, view)
    if found is None:
        print("priors: train has no box to compare them with; crowds do not count")
        return
    for name, before in found.before.items():
        after = found.after[name]
        recall, overlap = (
            f"{before[key]:.3f} -> {after[key]:.3f}" for key in ("recall", "mean_iou")
        )
        print(
            f"priors on {before['boxes']} boxes of {name}: recall at IoU 0.5 {recall}, "
            f"mean best IoU {overlap}"
        )
    if found.changes:
        print(f"{found.to_yaml()}\nWeights trained with other priors are of no use with these.")
    else:
        print(f"of {found.tried} others none with as few priors is better")


def _contradicted(
    experiment: Experiment, splits: Mapping[str, Dataset], arguments: argparse.Namespace
) -> None:
    from orchestrator.predict.label_check import check_labels, summary, write_suspects
    from orchestrator.predict.loading import load_detector

    loaded = load_detector(arguments.detector)
    listed = check_labels(
        loaded, splits, experiment.data, watch=lambda line: print(printable(line))
    )
    files = write_suspects(arguments.suspects or Path("suspects"), loaded.title, listed)
    print(f"boxes that {printable(loaded.title)} contradicts: {summary(listed)}")
    for one in listed[:_SUSPECTS_SAID]:
        print(f"  {printable(str(one))}")
    print(f"written: {', '.join(str(path) for path in files.values())}")


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
