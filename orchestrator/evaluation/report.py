"""The report of a run: one HTML page that holds everything in itself, charts and images too."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.decode import BadImageError
from orchestrator.data.images import image_pixels
from orchestrator.errors import DataError
from orchestrator.evaluation.analysis import BACKGROUND, Analysis, analyse
from orchestrator.evaluation.page import document, figure, number, table
from orchestrator.evaluation.results import Results, read_results
from orchestrator.pages import charts
from orchestrator.pages.drawing import Kind, Mark, draw, encode_jpeg
from orchestrator.storage.run_files import DETECTIONS, EVENTS, RESOLVED
from orchestrator.tracking.events import read_events
from orchestrator.tracking.run_card import read_tables

#: Bars of a chart, and rows of the confusion matrix, which a page has width for.
_MOST_BARS, _MOST_ROWS = 100, 20
_PICTURE_SIDE = 480

#: Of this page, beside what all pages have.
_STYLE = """
td { overflow-wrap: anywhere; } td.n, td:first-child { overflow-wrap: normal; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
"""


@dataclass(frozen=True)
class _RunFiles:
    """What a run folder says about itself: the card's tables, the log's curves, the experiment."""

    name: str
    card: dict[str, dict[str, str]]
    curves: dict[str, list[tuple[float, float]]]
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
    results = read_results(run_dir / DETECTIONS, dataset)
    analysis = analyse(dataset, results)
    files = _read_run(run_dir)
    body = "\n".join(_sections(files, dataset, results, analysis))
    return document(files.name, body, style=_STYLE)


def _read_run(run_dir: Path) -> _RunFiles:
    curves: dict[str, list[tuple[float, float]]] = {}
    for event in read_events(run_dir / EVENTS):
        for name, value in event.values.items():
            if math.isfinite(value):
                curves.setdefault(name, []).append((event.step, value))
    config = run_dir / RESOLVED
    return _RunFiles(
        name=run_dir.resolve().name,
        card=read_tables(run_dir),
        curves=curves,
        experiment=config.read_text("utf-8") if config.is_file() else "",
    )


def _sections(
    files: _RunFiles, dataset: Dataset, results: Results, analysis: Analysis
) -> Iterator[str]:
    tree = analysis.to_json()
    yield f"<h1>{html.escape(files.name)}</h1>"
    yield f'<p class="note">{html.escape(_summary(files, dataset, results))}</p>'
    yield from _numbers(tree)
    yield from _training(files)
    yield from _classes(analysis)
    yield from _curves(analysis, tree)
    yield from _errors(tree)
    yield from _confusion(analysis)
    yield from _worst(dataset, results, analysis)
    yield "<h2>Run</h2>"
    yield '<div class="row">'
    yield table(("", ""), files.card.get("", {}).items())
    yield table(("package", "version"), files.card.get("Versions", {}).items())
    yield "</div>"
    yield table(("what", "where"), files.card.get("Files", {}).items())
    yield "<h2>Experiment</h2>"
    yield f"<pre>{html.escape(files.experiment)}</pre>"


def _summary(files: _RunFiles, dataset: Dataset, results: Results) -> str:
    facts = files.card.get("", {})
    words = [facts[key] for key in ("detector", "status", "hardware") if key in facts]
    counts = (
        f"{len(dataset)} validation images, {len(dataset.labels)} boxes, {len(results)} detections "
        "of the last evaluation"
    )
    return "; ".join([*words, counts])


def _numbers(tree: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>COCO numbers</h2>"
    yield '<div class="row">'
    items = list(tree["metrics"].items())
    for half in (items[:6], items[6:]):
        yield table(("metric", "value"), ((name, number(value)) for name, value in half))
    for name, split in tree["splits"].items():
        by_bin = ((key, number(v["AP"]), number(v["AR100"])) for key, v in split.items())
        yield table((f"by {name}", "AP", "AR100"), by_bin)
    yield "</div>"


def _training(files: _RunFiles) -> Iterator[str]:
    groups: dict[str, list[str]] = {
        "losses": _losses(files.curves),
        "COCO numbers on val": [k for k in ("val/AP", "val/AP50", "val/AP75") if k in files.curves],
        "learning rate": [k for k in files.curves if k == "train/lr"],
        "images per second": [k for k in files.curves if k == "train/images_per_s"],
    }
    pictures = [
        figure(charts.lines({k: files.curves[k] for k in keys}, y_label=title), title)
        for title, keys in groups.items()
        if keys
    ]
    if pictures:
        yield "<h2>Training</h2>"
        yield f'<div class="row">{"".join(pictures)}</div>'


def _losses(curves: Iterable[str]) -> list[str]:
    """The total and each detector's own losses: what ``train/`` holds besides the usual."""
    usual = {"lr", "gradient_norm", "images_per_s", "epoch", "overflows"}
    return [k for k in curves if k.startswith("train/") and k.removeprefix("train/") not in usual]


def _classes(analysis: Analysis) -> Iterator[str]:
    yield "<h2>Classes</h2>"
    ranked = sorted(analysis.metrics.classes, key=lambda one: -one.ap)
    shown = ranked[:_MOST_BARS]
    yield '<div class="row">'
    title = "AP" if len(shown) == len(ranked) else f"AP of the best {len(shown)} classes"
    yield figure(charts.bars({one.name: one.ap for one in shown}, x_label="AP"), title)
    rows = (
        (
            one.name,
            str(one.boxes),
            str(one.detections),
            *map(number, (one.ap, one.ap50, one.ap75, one.ar100)),
        )
        for one in ranked
    )
    yield table(("class", "boxes", "detections", "AP", "AP50", "AP75", "AR100"), rows)
    yield "</div>"


def _curves(analysis: Analysis, tree: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Precision and recall</h2>"
    yield '<div class="row">'
    curves = tree["curves"]
    if curves["all"]:
        whole = {f"IoU {name}": values for name, values in curves["all"].items()}
        yield figure(charts.precision_recall(whole), "mean over classes")
        frequent = sorted(analysis.metrics.classes, key=lambda one: -one.boxes)
        shown = [one.name for one in frequent if one.name in curves["classes"]][: charts.MOST_LINES]
        which = "by class" if len(shown) == len(curves["classes"]) else "most frequent classes"
        yield figure(
            charts.precision_recall({name: curves["classes"][name] for name in shown}),
            f"IoU 0.50, {which}",
        )
    calibration = tree["calibration"]
    chart = charts.reliability(
        calibration["score"], calibration["precision"], calibration["counts"]
    )
    caption = f"calibration at IoU 0.5; expected error {calibration['error']:.3f}"
    yield figure(chart, caption)
    yield "</div>"


def _errors(tree: Mapping[str, Any]) -> Iterator[str]:
    errors = tree["errors"]
    yield "<h2>Errors</h2>"
    yield '<div class="row">'
    caption = "AP50 that would be gained without the errors of a kind (TIDE)"
    yield figure(charts.bars(errors["costs"], x_label="AP50 lost"), caption)
    rows = (
        (name, str(count), f"{errors['costs'][name]:.4f}")
        for name, count in errors["counts"].items()
    )
    yield table(("kind", "count", "AP50 lost"), rows)
    yield "</div>"


def _confusion(analysis: Analysis) -> Iterator[str]:
    confusion = analysis.confusion
    names = [*analysis.label_map.names, BACKGROUND]
    busy = np.argsort(-(confusion.counts.sum(axis=0) + confusion.counts.sum(axis=1))[:-1])
    chosen = [*sorted(busy[:_MOST_ROWS].tolist()), len(names) - 1]
    yield "<h2>Confusion</h2>"
    yield (
        f'<p class="note">Rows are boxes, columns detections of at least {confusion.threshold:.3f},'
        " the score of the best F1; IoU 0.5. The last column counts missed boxes, the last row "
        "detections on background.</p>"
    )
    head = "".join(f'<th class="n">{html.escape(names[i])}</th>' for i in chosen)
    yield f'<div class="wide"><table><tr><th></th>{head}</tr>'
    for i in chosen:
        row = confusion.counts[i]
        total = max(int(row.sum()), 1)
        cells = "".join(
            f'<td class="n" style="background: rgba(30, 110, 190, {row[j] / total * 0.7:.2f})">'
            f"{row[j]}</td>"
            for j in chosen
        )
        yield f"<tr><th>{html.escape(names[i])}</th>{cells}</tr>"
    yield "</table></div>"


def _worst(dataset: Dataset, results: Results, analysis: Analysis) -> Iterator[str]:
    yield "<h2>Images with most errors</h2>"
    yield (
        '<p class="note">Thick: detections at the working score '
        f"{analysis.working_score:.3f}. Thin: annotated boxes.</p>"
    )
    yield '<div class="row">'
    position = {int(image): i for i, image in enumerate(dataset.image_ids.tolist())}
    for one in analysis.worst:
        index = position[one.image_id]
        try:
            pixels = image_pixels(dataset, index, declared=False)
        except BadImageError as error:
            yield f'<p class="note">{html.escape(str(error))}</p>'
            continue
        marks = [
            *_detection_marks(results, one.image_id, analysis),
            *_annotation_marks(dataset, index, analysis),
        ]
        height, width = pixels.shape[:2]
        shown = min(_PICTURE_SIDE, width)
        uri = charts.image_uri(encode_jpeg(draw(pixels, marks), quality=80), "jpeg")
        caption = (
            f"{one.file} (id {one.image_id}, {width} x {height}): {one.missed} missed, "
            f"{one.false_positives} false positives"
        )
        yield figure(uri, caption, width=shown)
    yield "</div>"


def _detection_marks(results: Results, image: int, analysis: Analysis) -> Iterator[Mark]:
    matches = analysis.matches
    wrong = set(matches.row[matches.false_positive].tolist())
    rows = (results.image_ids == image) & (results.scores >= analysis.working_score)
    for row in np.flatnonzero(rows).tolist():
        x, y, w, h = results.boxes_xywh[row].tolist()
        label = int(results.labels[row])
        text = f"{analysis.label_map.names[label]} {results.scores[row]:.2f}"
        kind: Kind = "false positive" if row in wrong else "detection"
        yield Mark((x, y, x + w, y + h), label, text, kind)


def _annotation_marks(dataset: Dataset, index: int, analysis: Analysis) -> Iterator[Mark]:
    matches = analysis.matches
    matched = matches.annotation[matches.score >= analysis.working_score]
    rows = dataset.boxes_of(index)
    for row in range(rows.start, rows.stop):
        x, y, w, h = dataset.boxes_xywh[row].tolist()
        label = int(dataset.labels[row])
        missed = not dataset.crowd[row] and not (matched == row).any()
        kind: Kind = "missed" if missed else "annotation"
        text = dataset.label_map.names[label] if missed else ""
        yield Mark((x, y, x + w, y + h), label, text, kind)
