"""The report of a run: one HTML page that holds everything in itself, charts and images too."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.errors import DataError
from orchestrator.evaluation.analysis import BACKGROUND, Analysis, analyse
from orchestrator.evaluation.marks import marks_in
from orchestrator.evaluation.results import Results, read_results
from orchestrator.evaluation.stored import require_classes_of, require_logged_ap
from orchestrator.pages import charts
from orchestrator.pages.document import (
    Block,
    Code,
    Figure,
    Layers,
    Legend,
    Row,
    Section,
    Text,
    css,
    facts_table,
    number,
    render,
)
from orchestrator.pages.drawing import Image, Mark, colour_of, draw, encode_jpeg, ink, shrunk
from orchestrator.storage.run_files import DETECTIONS, EVENTS, RESOLVED
from orchestrator.tracking.events import read_events
from orchestrator.tracking.run_card import read_tables

#: Bars of a chart, and rows of the confusion matrix, which a page has width for.
_MOST_BARS, _MOST_ROWS = 100, 20
#: Of a picture on the page, pixels; the page is a file that people send to each other.
_PICTURE_SIDE = 640
#: False positives drawn on one picture: of more, nothing could be seen. True positives are few.
_MOST_FALSE = 30
_LAYERS = ("both", "detections", "annotations")


@dataclass(frozen=True)
class _RunFiles:
    """What a run folder says of itself: card, curves, first and last moment, experiment."""

    name: str
    card: dict[str, dict[str, str]]
    curves: dict[str, list[tuple[float, float]]]
    times: tuple[int, int] | None
    experiment: str


def render_report(run_dir: Path, dataset: Dataset) -> str:
    """The page about a run, as text.

    The detections are those of the run's last evaluation.

    Args:
        run_dir: of a run that was evaluated at least once.
        dataset: its validation annotations; images that are not there are left out of the page.

    Raises:
        DataError: the run has no results yet, or they are of other data.
    """
    if not (run_dir / DETECTIONS).is_file():
        raise DataError(
            f"{run_dir}: has no {DETECTIONS}, so there is nothing to report. Next: let the run "
            "reach its first evaluation"
        )
    require_classes_of(run_dir, dataset)
    results = read_results(run_dir / DETECTIONS, dataset)
    analysis = analyse(dataset, results)
    files = _read_run(run_dir)
    logged = files.curves.get("val/AP")
    require_logged_ap(
        files.name, analysis.metrics.numbers["AP"], None if logged is None else logged[-1][1]
    )
    return render(files.name, _sections(files, dataset, results, analysis))


def _read_run(run_dir: Path) -> _RunFiles:
    curves: dict[str, list[tuple[float, float]]] = {}
    times: list[int] = []
    for event in read_events(run_dir / EVENTS):
        times.append(event.time_ms)
        for name, value in event.values.items():
            if math.isfinite(value):
                curves.setdefault(name, []).append((event.step, value))
    config = run_dir / RESOLVED
    return _RunFiles(
        name=run_dir.resolve().name,
        card=read_tables(run_dir),
        curves=curves,
        times=(min(times), max(times)) if times else None,
        experiment=config.read_text("utf-8") if config.is_file() else "",
    )


def _sections(
    files: _RunFiles, dataset: Dataset, results: Results, analysis: Analysis
) -> Iterator[Section]:
    tree = analysis.to_json()
    names = analysis.label_map.names
    colours = {name: css(ink(colour_of(label))) for label, name in enumerate(names)}
    yield Section("", (Text(_summary(files, dataset, results)), *_when(files)))
    yield Section("COCO numbers", tuple(_numbers(tree)))
    yield Section("Training", tuple(_training(files)))
    yield Section("Classes", tuple(_classes(analysis, colours)))
    yield Section("Precision and recall", tuple(_curves(analysis, tree, colours)))
    yield Section("Errors", tuple(_errors(tree)))
    yield Section("Confusion", tuple(_confusion(analysis, colours)))
    yield Section("Images with most errors", tuple(_worst(dataset, results, analysis)))
    if files.card:
        facts = facts_table(("", ""), files.card.get("", {}).items())
        versions = facts_table(("package", "version"), files.card.get("Versions", {}).items())
        where = facts_table(("what", "where"), files.card.get("Files", {}).items())
        yield Section("Run", (Row((facts, versions)), where))
    yield Section("Experiment", (Code(files.experiment),))


def _summary(files: _RunFiles, dataset: Dataset, results: Results) -> str:
    facts = files.card.get("", {})
    words = [facts[key] for key in ("detector", "status", "hardware") if key in facts]
    if "parameters" in facts:
        words.insert(1, f"{facts['parameters']} parameters")
    counts = (
        f"{len(dataset)} validation images, {len(dataset.labels)} boxes, {len(results)} detections "
        "of the last evaluation"
    )
    return "; ".join([*words, counts])


def _when(files: _RunFiles) -> Iterator[Text]:
    if files.times is None:
        return
    first, last = (datetime.fromtimestamp(ms / 1000, tz=timezone.utc) for ms in files.times)
    length = timedelta(seconds=round((last - first).total_seconds()))
    yield Text(f"From {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, {length} (h:mm:ss).")


def _numbers(tree: Mapping[str, Any]) -> Iterator[Block]:
    items = list(tree["metrics"].items())
    tables = [
        facts_table(("metric", "value"), ((name, number(value)) for name, value in half))
        for half in (items[:6], items[6:])
    ]
    for name, split in tree["splits"].items():
        by_bin = ((key, number(v["AP"]), number(v["AR100"])) for key, v in split.items())
        tables.append(facts_table((f"by {name}", "AP", "AR100"), by_bin))
    yield Row(tuple(tables))


def _training(files: _RunFiles) -> Iterator[Block]:
    groups: dict[str, list[str]] = {
        "losses": _losses(files.curves),
        "COCO numbers on val": [k for k in ("val/AP", "val/AP50", "val/AP75") if k in files.curves],
        "learning rate": [k for k in files.curves if k == "train/lr"],
        "images per second": [k for k in files.curves if k == "train/images_per_s"],
    }
    pictures = [
        Figure(charts.lines({k: files.curves[k] for k in keys}, y_label=title), title)
        for title, keys in groups.items()
        if keys
    ]
    if pictures:
        yield Row(tuple(pictures))


def _losses(curves: Iterable[str]) -> list[str]:
    """The total and each detector's own losses: what ``train/`` holds besides the usual."""
    usual = {"lr", "gradient_norm", "images_per_s", "epoch", "overflows"}
    return [k for k in curves if k.startswith("train/") and k.removeprefix("train/") not in usual]


def _classes(analysis: Analysis, colours: Mapping[str, str]) -> Iterator[Block]:
    ranked = sorted(analysis.metrics.classes, key=lambda one: -one.ap)
    shown = ranked[:_MOST_BARS]
    title = "AP" if len(shown) == len(ranked) else f"AP of the best {len(shown)} classes"
    aps = {one.name: one.ap for one in shown}
    rows = (
        (
            one.name,
            str(one.boxes),
            str(one.detections),
            *map(number, (one.ap, one.ap50, one.ap75, one.ar100)),
        )
        for one in ranked
    )
    head = ("class", "boxes", "detections", "AP", "AP50", "AP75", "AR100")
    chart = Figure(charts.bars(aps, x_label="AP", colour=colours), title)
    yield Row((chart, facts_table(head, rows, values=True, colours=colours)))
    yield Text(
        f"Detections of at least {analysis.working_score:.3f}, the score of the best F1 over all "
        "classes, at IoU 0.5:"
    )
    by_name = {one.name: one for one in analysis.at_working_score}
    at_score = (by_name[one.name] for one in ranked)
    head = ("class", "true positives", "false positives", "missed", "precision", "recall", "F1")
    rows = (
        (
            one.name,
            str(one.true_positives),
            str(one.false_positives),
            str(one.missed),
            *(_rate(value) for value in (one.precision, one.recall, one.f1)),
        )
        for one in at_score
    )
    yield facts_table(head, rows, values=True, colours=colours)


def _rate(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _curves(
    analysis: Analysis, tree: Mapping[str, Any], colours: Mapping[str, str]
) -> Iterator[Block]:
    pictures = []
    curves = tree["curves"]
    if curves["all"]:
        whole = {f"IoU {name}": values for name, values in curves["all"].items()}
        pictures.append(Figure(charts.precision_recall(whole), "mean over classes"))
        frequent = sorted(analysis.metrics.classes, key=lambda one: -one.boxes)
        shown = [one.name for one in frequent if one.name in curves["classes"]][: charts.MOST_LINES]
        which = "by class" if len(shown) == len(curves["classes"]) else "most frequent classes"
        by_class = {name: curves["classes"][name] for name in shown}
        chart = charts.precision_recall(by_class, colour=colours)
        pictures.append(Figure(chart, f"IoU 0.50, {which}"))
    calibration = tree["calibration"]
    if calibration is not None:
        chart = charts.reliability(
            calibration["score"], calibration["precision"], calibration["counts"]
        )
        caption = f"calibration at IoU 0.5; expected error {calibration['error']:.3f}"
        pictures.append(Figure(chart, caption))
    if pictures:
        yield Row(tuple(pictures))
    if analysis.score_note:
        yield Text(f"Warning: {analysis.score_note}.")


def _errors(tree: Mapping[str, Any]) -> Iterator[Block]:
    errors = tree["errors"]
    caption = "AP50 that would be gained without the errors of a kind (TIDE)"
    rows = (
        (name, str(count), f"{errors['costs'][name]:.4f}")
        for name, count in errors["counts"].items()
    )
    chart = Figure(charts.bars(errors["costs"], x_label="AP50 lost"), caption)
    yield Row((chart, facts_table(("kind", "count", "AP50 lost"), rows)))


def _confusion(analysis: Analysis, colours: Mapping[str, str]) -> Iterator[Block]:
    confusion = analysis.confusion
    names = [*analysis.label_map.names, BACKGROUND]
    busy = np.argsort(-(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))[:-1])
    none = len(names) - 1
    chosen = [*sorted(busy[:_MOST_ROWS].tolist()), none]
    yield Text(
        f"Rows are annotated boxes, columns detections of at least {confusion.threshold:.3f}, the "
        "score of the best F1; IoU 0.5. Blue is the share of a row's boxes that were detected. In "
        "grey: the last column counts missed boxes, the last row detections on background."
    )
    shades: dict[tuple[int, int], str] = {}
    for row, i in enumerate(chosen):
        whole = max(int(confusion.counts[i].sum()), 1)
        detected = max(int(confusion.counts[i, :none].sum()), 1)
        for column, j in enumerate(chosen):
            count = int(confusion.counts[i, j])
            if none in (i, j):
                shades[row, column + 1] = f"rgba(90, 90, 90, {count / whole * 0.35:.2f})"
            else:
                shades[row, column + 1] = f"rgba(30, 110, 190, {count / detected * 0.7:.2f})"
    head = ("", *(names[i] for i in chosen))
    rows = ((names[i], *(str(confusion.counts[i, j]) for j in chosen)) for i in chosen)
    yield facts_table(head, rows, values=True, colours=colours, shades=shades)


def _worst(dataset: Dataset, results: Results, analysis: Analysis) -> Iterator[Block]:
    if not analysis.worst:
        yield Text("None: every box was detected, and nothing else.")
        return
    yield Text(f"Detections of at least the working score {analysis.working_score:.3f}, IoU 0.5.")
    position = {int(image): i for i, image in enumerate(dataset.image_ids.tolist())}
    unreadable: list[Block] = []
    pictures: list[tuple[Figure, ...]] = []
    labels: set[int] = set()
    crowded = False
    for one in analysis.worst:
        index = position[one.image_id]
        try:
            pixels = image_pixels(dataset, index, declared=False)
        except BadImageError as error:
            unreadable.append(Text(str(error)))
            continue
        working = analysis.working_score
        detections, annotations = marks_in(dataset, index, results, score=working)
        false = [mark for mark in detections if mark.kind == "false positive"]
        detections = [mark for mark in detections if mark not in false[_MOST_FALSE:]]
        crowded = crowded or len(false) > _MOST_FALSE
        labels.update(mark.label for mark in (*detections, *annotations))
        height, width = pixels.shape[:2]
        caption = (
            f"{one.file} (id {one.image_id}, {width} x {height}): {one.missed} missed, "
            f"{one.false_positives} false positives"
        )
        # Each layer shows the other's boxes no more, so that covered ones can be seen.
        layers = ([*detections, *annotations], detections, annotations)
        pictures.append(
            tuple(
                Figure(_picture(pixels, marks), caption if number == 0 else f"{caption}, {name}")
                for number, (name, marks) in enumerate(zip(_LAYERS, layers, strict=True))
            )
        )
    if pictures:
        if crowded:
            yield Text(f"Of an image's false positives the {_MOST_FALSE} best are drawn.")
        names = analysis.label_map.names
        shown = {names[label]: css(colour_of(label)) for label in sorted(labels)[:_MOST_ROWS]}
        yield Legend(
            shown,
            (
                ("full", "true positive"),
                ("dashed", "false positive (FP)"),
                ("thin", "annotated box; missed if it says so"),
            ),
        )
        yield Layers(_LAYERS, tuple(pictures))
    yield from unreadable


def _picture(pixels: Image, marks: list[Mark]) -> str:
    picture = draw(*shrunk(pixels, marks, _PICTURE_SIDE))
    return charts.image_uri(encode_jpeg(picture, quality=80), "jpeg")
