"""The report as one HTML file that needs no other: pictures are inside, and there is no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from orchestrator.data.dataset import Dataset
from orchestrator.data.doctor.diagnosis import Report
from orchestrator.data.doctor.pictures import contact_sheet, heat, heat_picture
from orchestrator.pages.drawing import Image, encode_jpeg

#: Images on a contact sheet, taken at equal distances.
SHEET_IMAGES = 24
_BARS = 40
_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; color: #222 }
table { border-collapse: collapse } td, th { padding: .2em .8em; text-align: left }
tr:nth-child(even) { background: #f3f3f3 } img { max-width: 100% }
.refuse { color: #b00020; font-weight: 600 } .quarantine { color: #b35900 }
.repair { color: #6a5d00 } .bar { fill: #3b6ea8 } figure { margin: 1em 0 }
.row { display: flex; flex-wrap: wrap; gap: 2em; align-items: start }
"""


def page(title: str, report: Report, splits: Mapping[str, Dataset]) -> str:
    """The whole page.

    Args:
        title: of the experiment.
        report: what was found.
        splits: the data sets that could be read.
    """
    parts = [f"<h1>{escape(title)}</h1>", _findings(report)]
    for name, data in splits.items():
        parts += _split(name, data, report.splits[name])
    body = "\n".join(parts)
    return (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{escape(title)}"
        f"</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _findings(report: Report) -> str:
    if not report.diagnoses:
        return "<p>Nothing was found wrong.</p>"
    rows = [
        f"<tr class='{one.verdict.name.lower()}'><td>{one.verdict.name.lower()}</td>"
        f"<td>{escape(one.split)}</td><td>{escape(one.finding.kind)}</td>"
        f"<td>{one.finding.count}</td><td>{escape(one.finding.action)}</td>"
        f"<td>{'<br>'.join(map(escape, one.finding.examples))}</td></tr>"
        for one in sorted(report.diagnoses, key=lambda one: -one.verdict)
    ]
    head = "<tr><th>verdict<th>split<th>finding<th>count<th>what is done<th>examples</tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _split(name: str, data: Dataset, facts: Mapping[str, Any]) -> list[str]:
    counts = {label: of["boxes"] for label, of in facts["classes"].items()}
    parts = [
        f"<h2>{escape(name)}</h2>",
        f"<p>{facts['images']} images, {facts['boxes']} boxes, {facts['crowd_boxes']} of them "
        f"crowds; {facts['images_without_boxes']} images without boxes.</p>",
    ]
    figures = [_figure("boxes of each class", _bars(counts))]
    sides = np.sqrt(np.prod(data.boxes_xywh[~data.crowd, 2:], axis=1))
    if len(sides):
        figures.append(_figure("square root of box area, pixels", _histogram(sides)))
        figures.append(_figure("where boxes lie", _picture(heat_picture(heat(data)))))
    parts.append(f"<div class='row'>{''.join(figures)}</div>")
    if recall := facts.get("prior_recall"):
        rows = "".join(
            f"<tr><td>{size}<td>{of['boxes']}<td>{of['recall']:.3f}<td>{of['mean_iou']:.3f}</tr>"
            for size, of in recall.items()
        )
        head = "<tr><th>boxes<th>compared<th>with a prior of IoU 0.5<th>mean best IoU</tr>"
        parts.append(f"<table>{head}{rows}</table>")
    chosen = np.unique(np.linspace(0, len(data) - 1, SHEET_IMAGES).astype(np.int64)).tolist()
    picture = contact_sheet(data, chosen)
    if picture is not None:
        parts.append(_figure("images at equal distances", _picture(picture)))
    return parts


def _figure(caption: str, content: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{content}</figure>"


def _picture(image: Image) -> str:
    data = base64.b64encode(encode_jpeg(image, quality=85)).decode("ascii")
    return f"<img alt='' src='data:image/jpeg;base64,{data}'>"


def _bars(counts: Mapping[str, int]) -> str:
    """Horizontal bars, the longest first; of many, those at both ends."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    left_out = len(ordered) - _BARS
    if left_out > 0:
        ordered = [*ordered[: _BARS // 2], *ordered[-_BARS // 2 :]]
    largest = max(1, *counts.values())
    rows = [
        f"<text x='150' y='{16 * row + 12}' text-anchor='end'>{escape(name[:22])}</text>"
        f"<rect class='bar' x='156' y='{16 * row + 1}' height='13' "
        f"width='{200 * count / largest:.1f}'/>"
        f"<text x='{160 + 200 * count / largest:.1f}' y='{16 * row + 12}'>{count}</text>"
        for row, (name, count) in enumerate(ordered)
    ]
    note = f"<p>{left_out} classes between them are not shown.</p>" if left_out > 0 else ""
    height = 16 * len(ordered)
    return (
        f"<svg width='430' height='{height}' font-size='12' font-family='sans-serif'>"
        f"{''.join(rows)}</svg>{note}"
    )


def _histogram(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Counts of positive values between powers of the square root of two."""
    steps = np.arange(0, 2 * 12 + 1)
    edges = np.concatenate([[0.0], 2.0 ** (steps / 2), [np.inf]])
    counts, _ = np.histogram(values, edges)
    largest = max(1, int(counts.max()))
    bars = "".join(
        f"<rect class='bar' x='{14 * i}' width='12' y='{160 - 150 * count / largest:.1f}' "
        f"height='{150 * count / largest:.1f}'><title>{edges[i]:.0f} to {edges[i + 1]:.0f}: "
        f"{count}</title></rect>"
        for i, count in enumerate(counts.tolist())
    )
    ticks = "".join(
        f"<text x='{14 * (2 * power + 1)}' y='175' text-anchor='middle'>{2**power}</text>"
        for power in range(1, 12, 2)
    )
    return (
        f"<svg width='{14 * len(counts)}' height='180' font-size='12' font-family='sans-serif'>"
        f"{bars}{ticks}</svg>"
    )
