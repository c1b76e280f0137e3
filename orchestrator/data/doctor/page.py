"""The report as one HTML file that needs no other: pictures are inside, and there is no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.diagnosis import Report
from orchestrator.data.doctor.pictures import heat, heat_picture, tiles
from orchestrator.pages.charts import image_uri
from orchestrator.pages.document import (
    Bars,
    Block,
    Figure,
    Gallery,
    Histogram,
    Legend,
    Row,
    Section,
    Text,
    css,
    facts_table,
    render,
)
from orchestrator.pages.drawing import Image, colour_of, encode_jpeg

#: Images of a split that are shown, taken at equal distances.
SHOWN_IMAGES = 24
_BARS = 40
_MOST_COLOURS = 40


def page(title: str, report: Report, splits: Mapping[str, Dataset]) -> str:
    """The whole page.

    Args:
        title: of the experiment.
        report: what was found.
        splits: the data sets that could be read.
    """
    parts = [Section("", (_findings(report),))]
    for name, data in splits.items():
        parts.append(Section(name, tuple(_split(data, report.splits[name]))))
    return render(title, parts)


def _findings(report: Report) -> Block:
    if not report.diagnoses:
        return Text("Nothing was found wrong.")
    found = sorted(report.diagnoses, key=lambda one: -one.verdict)
    rows = [
        (
            one.verdict.name.lower(),
            one.split,
            one.finding.kind,
            str(one.finding.count),
            one.finding.action,
            ", ".join(one.finding.examples),
        )
        for one in found
    ]
    styles = tuple(one.verdict.name.lower() for one in found)
    head = ("verdict", "split", "finding", "count", "what is done", "examples")
    return facts_table(head, rows, styles=styles, stacked=True)


def _split(data: Dataset, facts: Mapping[str, Any]) -> Iterator[Block]:
    yield Text(
        f"images: {facts['images']}, without boxes: {facts['images_without_boxes']}; "
        f"boxes: {facts['boxes']}, crowds: {facts['crowd_boxes']}",
        style="",
    )
    names = data.label_map.names
    colours = {name: css(colour_of(label)) for label, name in enumerate(names)}
    counts = {label: of["boxes"] for label, of in facts["classes"].items()}
    figures: list[Block] = [_bars(counts, colours)]
    sides = np.sqrt(np.prod(data.boxes_xywh[~data.crowd, 2:], axis=1))
    if len(sides):
        figures.append(_histogram(sides))
        figures.append(Figure(_uri(heat_picture(heat(data))), "where boxes lie; most in yellow"))
    yield Row(tuple(figures))
    if recall := facts.get("prior_recall"):
        rows = (
            (size, str(of["boxes"]), f"{of['recall']:.3f}", f"{of['mean_iou']:.3f}")
            for size, of in recall.items()
        )
        head = ("boxes", "compared", "with a prior of IoU 0.5", "mean best IoU")
        yield facts_table(head, rows)
    chosen = np.unique(np.linspace(0, len(data) - 1, SHOWN_IMAGES).astype(np.int64)).tolist()
    shown = [Figure(_uri(image), data.files[index]) for index, image in tiles(data, chosen)]
    if shown:
        if len(names) <= _MOST_COLOURS:
            yield Legend(colours)
        yield Gallery(tuple(shown))
        yield Text("Images at equal distances.")


def _uri(image: Image) -> str:
    return image_uri(encode_jpeg(image, quality=85), "jpeg")


def _bars(counts: Mapping[str, int], colours: Mapping[str, str]) -> Bars:
    """Boxes of each class, the most frequent first; of many classes, those at both ends."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    left_out = len(ordered) - _BARS
    if left_out > 0:
        ordered = [*ordered[: _BARS // 2], *ordered[-_BARS // 2 :]]
    return Bars(
        "boxes of each class",
        tuple((name, count, colours[name]) for name, count in ordered),
        note=f"{left_out} classes between them are not shown." if left_out > 0 else "",
    )


def _histogram(values: NDArray[np.float64]) -> Histogram:
    """Counts of positive values between powers of the square root of two."""
    steps = np.arange(0, 2 * 12 + 1)
    edges = np.concatenate([[0.0], 2.0 ** (steps / 2), [np.inf]])
    counts, _ = np.histogram(values, edges)
    return Histogram(
        "square root of box area, pixels; number of boxes",
        tuple(
            (f"{low:.0f}", f"{high:.0f}", count)
            for low, high, count in zip(
                edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True
            )
        ),
        {2 * power + 1: str(2**power) for power in range(1, 12, 2)},
    )
