"""``orchestrator predict``: detections in images, folders, patterns, lists and videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli._shared.detector import (
    add_detect_options,
    add_source_options,
    load,
    require_source,
    shown_options,
    split_overrides,
)
from orchestrator.cli._shared.outputs import file_to_write, folder_to_fill
from orchestrator.cli._shared.parser import COUNT, Parser, number_between
from orchestrator.errors import ConfigError, say
from orchestrator.memory import importing

if TYPE_CHECKING:
    from orchestrator.predict.inputs import Picture
    from orchestrator.predict.loading import LoadedDetector
    from orchestrator.predict.prediction import Prediction
    from orchestrator.predict.predictor import DetectOptions
    from orchestrator.predict.results_target import ResultsTarget


def main(argv: Sequence[str]) -> int:
    """Predict, and draw if asked to."""
    parser = Parser(
        prog="orchestrator predict",
        description="detect in images. A command that was killed goes on where it was when it is "
        "given again",
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|CHECKPOINT|WEIGHTS INPUT ... [key.path=value ...]",
        help="the detector, then images, folders, patterns in quotes, .txt lists, videos, or "
        "s3://bucket/key of an image, a folder or a pattern",
    )
    parser.add_argument(
        "--output",
        type=file_to_write,
        default="predictions.json",
        metavar="FILE",
        help="default: predictions.json",
    )
    parser.add_argument(
        "--form",
        choices=("seed", "coco"),
        default="seed",
        help="an object by path with sizes and names, or COCO results (default: seed)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file that gives images and classes their ids, for --form coco: an input is the "
        "image whose file_name its path ends in, a class that of its name (default: images are "
        "numbered from 1, listed in OUTPUT.images.json)",
    )
    parser.add_argument(
        "--workers", type=COUNT, default=1, metavar="N", help="processes (default 1)"
    )
    parser.add_argument(
        "--threads", type=COUNT, default=1, metavar="N", help="CPU threads of each (default 1)"
    )
    parser.add_argument("--batch", type=COUNT, default=8, metavar="N", help="images at a time")
    parser.add_argument(
        "--threshold",
        type=number_between(0, 1),
        metavar="SCORE",
        help="lowest score that is written and drawn, short for "
        "detector.postprocess.score_threshold=SCORE; also holds where soft suppression lowers "
        "scores (default: 0.25)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every detection that the experiment keeps, as scoring needs and --form coco writes "
        "anyway (default: scores above 0.25, and the best 100 of an image)",
    )
    parser.add_argument(
        "--draw",
        type=folder_to_fill,
        metavar="FOLDER",
        help="also draw the detections on the images",
    )
    parser.add_argument(
        "--draw-threshold",
        type=number_between(0, 1),
        metavar="SCORE",
        help="lowest score that is drawn (default: that which is written; 0.25 of COCO results)",
    )
    _add_live_options(parser)
    add_source_options(parser)
    add_detect_options(parser)
    arguments = parser.parse_args(argv)
    overrides, words = split_overrides(arguments.words)
    if arguments.threshold is not None:
        if arguments.all:
            raise ConfigError("--all, --threshold: contradict each other; leave one out")
        overrides.append(f"detector.postprocess.score_threshold={arguments.threshold}")
    if arguments.camera is not None or arguments.video is not None:
        return _watch(words, overrides, arguments)
    if arguments.show or arguments.frames is not None:
        raise ConfigError("--show, --frames: belong to --camera or --video; name one of those")
    if len(words) < 2:
        raise ConfigError(
            f"{parser.prog}: expected a RUN, CHECKPOINT or WEIGHTS and at least one INPUT, found "
            f"{' '.join(words) or 'none'}"
        )
    return _predict(words[0], words[1:], overrides, arguments)


def _add_live_options(parser: Parser) -> None:
    group = parser.add_argument_group(
        "frame by frame, in place of inputs",
        "in one process, until the frames end or Ctrl-C, without going on where it was killed",
    )
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--camera",
        type=number_between(0, whole=True),
        metavar="N",
        help="number of a camera, from 0",
    )
    source.add_argument("--video", type=Path, metavar="FILE", help="a video, played once")
    group.add_argument("--show", action="store_true", help="in a window, which q closes")
    group.add_argument("--frames", type=COUNT, metavar="N", help="stop after so many")


def _watch(words: list[str], overrides: list[str], arguments: Any) -> int:
    if len(words) != 1:
        raise ConfigError("--camera, --video: stand in place of inputs; name a detector alone")
    if arguments.form != "seed" or arguments.workers != 1:
        raise ConfigError("--camera, --video: go with --form seed and --workers 1")
    require_source(words[0])

    from rich.console import Console
    from rich.progress import Progress, TimeElapsedColumn

    from orchestrator.predict.live import Viewing, watch

    loaded = load(words[0], overrides, arguments)
    how = shown_options(loaded, arguments, overrides)
    console = Console(stderr=True, soft_wrap=True)
    with Progress(
        "{task.description} {task.completed} frames",
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("watching", total=arguments.frames)
        found = watch(
            loaded,
            how,
            arguments.video if arguments.camera is None else arguments.camera,
            Viewing(
                arguments.show, arguments.draw, _lowest_drawn(arguments, how), arguments.frames
            ),
            threads=arguments.threads,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    _write(arguments, found, loaded.label_map, {})
    boxes = sum(len(one.scores) for one in found)
    print(f"{len(found)} frames, {boxes} detections{_rule(arguments, how)}: {arguments.output}")
    return 0


def _predict(source: str, words: list[str], overrides: list[str], arguments: Any) -> int:
    require_source(source)

    from orchestrator.predict.inputs import folders_without_images, list_pictures, passed_over

    pictures = list_pictures(words)

    from rich.console import Console
    from rich.progress import Progress

    with importing():
        from orchestrator.pages.drawing import DISPLAY_LIMIT
        from orchestrator.predict.draw_predictions import draw_predictions, require_apart
        from orchestrator.predict.prediction import PredictJob, predicted

    console = Console(stderr=True, soft_wrap=True)
    if others := passed_over(words):
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.items())
        say(console, f"passed over, being no images that are read: {listed}")
    for folder in folders_without_images(words):
        within = f"{folder.rstrip('/')}/*"
        say(console, f"{folder}: holds no image; for the folders in it, write {within}")
    if arguments.form != "coco" and arguments.annotations is not None:
        raise ConfigError("--annotations: gives ids to COCO results; add --form coco")
    if arguments.draw is not None:
        require_apart(arguments.draw, pictures)
    loaded = load(source, overrides, arguments)
    target = _target(pictures, loaded, arguments)
    if target.note is not None:
        say(console, target.note)
    job = PredictJob(
        loaded=loaded,
        how=shown_options(loaded, arguments, overrides),
        pictures=tuple(pictures),
        batch_size=arguments.batch,
        threads=arguments.threads,
        decoding=target.decoding,
    )
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("predicting", total=len(pictures))
        with predicted(
            job,
            arguments.output,
            workers=arguments.workers,
            on_progress=lambda done: bar.update(task, completed=done),
        ) as found:
            _write(arguments, found, target.label_map, target.image_ids)
    problems = [one.problem for one in found if one.problem is not None]
    for problem in problems:
        say(console, f"skipped: {problem}")
    boxes = sum(len(one.scores) for one in found)
    print(
        f"{len(found) - len(problems)} images, {boxes} detections{_rule(arguments, job.how)}: "
        f"{arguments.output}"
    )
    if arguments.draw is not None:
        drawn = draw_predictions(
            found,
            loaded.label_map,
            arguments.draw,
            threshold=_lowest_drawn(arguments, job.how),
            limit=DISPLAY_LIMIT if arguments.form == "coco" and not arguments.all else None,
            pictures={picture.key: picture for picture in pictures},
            decoding=target.decoding,
        )
        for problem in drawn.problems:
            say(console, f"not drawn: {problem}")
        print(f"drawn: {len(drawn.pictures)} images in {arguments.draw}")
    return 0


def _target(pictures: Sequence[Picture], loaded: LoadedDetector, arguments: Any) -> ResultsTarget:
    """The ids that COCO results are written with."""
    from orchestrator.predict.results_target import ResultsTarget, target_of

    if arguments.form == "coco" and arguments.annotations is not None:
        return target_of(pictures, loaded, arguments.annotations)
    ids = {picture.key: number for number, picture in enumerate(pictures, start=1)}
    return ResultsTarget(ids, loaded.label_map, loaded.pictures)


def _lowest_drawn(arguments: Any, how: DetectOptions) -> float:
    """The lowest score that is drawn: of what is written, unless that is meant for scoring."""
    from orchestrator.pages.drawing import DISPLAY_SCORE

    if arguments.draw_threshold is not None:
        return float(arguments.draw_threshold)
    # COCO results are written for scoring, down to scores that only hide what is below them.
    of_scoring = arguments.form == "coco" and arguments.threshold is None and not arguments.all
    return DISPLAY_SCORE if of_scoring else float(how.postprocess.score_threshold)


def _rule(arguments: Any, how: DetectOptions) -> str:
    """What was left out, for people who count."""
    if arguments.all or arguments.form == "coco":
        return ""
    score, most = how.postprocess.score_threshold, how.postprocess.max_per_image
    limit = "" if most is None else f", at most {most} an image"
    return f" with scores above {score:g}{limit} (--all for the others)"


def _write(
    arguments: Any, found: Sequence[Prediction], label_map: Any, image_ids: Mapping[str, int]
) -> None:
    from orchestrator.predict.prediction import to_coco_results, to_seed_json
    from orchestrator.storage.atomic import write_atomic

    tree: Any
    if arguments.form == "coco":
        tree = to_coco_results(found, label_map, image_ids)
        if arguments.annotations is None:
            images = [
                {"id": image_ids[one.key], "file_name": one.key}
                | {"width": one.width, "height": one.height}
                for one in found
            ]
            beside = arguments.output.with_name(f"{arguments.output.name}.images.json")
            write_atomic(beside, json.dumps(images, indent=1).encode())
    else:
        tree = to_seed_json(found, label_map)
    text = json.dumps(tree, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    write_atomic(arguments.output, text.encode("utf-8", "backslashreplace"))
