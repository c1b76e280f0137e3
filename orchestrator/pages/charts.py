"""The charts of a report, as SVG images that a page can hold in itself."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_RECALLS = [number / 100 for number in range(101)]
#: More lines than this in one chart cannot be told apart.
MOST_LINES = 10

#: (step, value) pairs.
Points = Sequence[tuple[float, float]]


def image_uri(data: bytes, kind: str) -> str:
    """A ``data:`` URI of a picture."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


#: Class names are no formulae, and equal charts are equal bytes. Names stay text, for which the
#: reader's browser has the glyphs.
styled = mpl.rc_context(
    {"text.parse_math": False, "svg.hashsalt": "report", "svg.fonttype": "none"}
)


@styled
def lines(series: Mapping[str, Points], *, y_label: str, x_label: str = "step") -> str:
    """Curves over steps; values that are not finite leave gaps."""
    figure, axes = new_figure()
    for name, points in list(series.items())[:MOST_LINES]:
        marker = "o" if len(points) < 3 else None
        axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker=marker)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1:
        axes.legend(fontsize="small")
    return svg_uri(figure)


@styled
def bars(values: Mapping[str, float], *, x_label: str) -> str:
    """A horizontal bar for each name; a value below 0 says that there is nothing to show."""
    figure, axes = new_figure(height=max(1.6, 0.8 + 0.22 * len(values)))
    names = list(values)
    axes.barh(names, [max(values[name], 0.0) for name in names])
    for place, name in enumerate(names):
        text = "-" if values[name] < 0 else f"{values[name]:.3f}"
        axes.text(max(values[name], 0.0), place, f" {text}", va="center", fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(x_label)
    return svg_uri(figure)


@styled
def precision_recall(curves: Mapping[str, Sequence[float]]) -> str:
    """Precision at the recalls 0.00, 0.01 ... 1.00."""
    figure, axes = new_figure()
    for name, precision in list(curves.items())[:MOST_LINES]:
        axes.plot(_RECALLS, precision, label=name)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize="small")
    return svg_uri(figure)


@styled
def reliability(score: Sequence[float], precision: Sequence[float], counts: Sequence[int]) -> str:
    """Mean score against precision, and the line on which scores are probabilities."""
    figure, axes = new_figure()
    there = [number for number, count in enumerate(counts) if count]
    axes.plot([0, 1], [0, 1], linestyle="--", color="grey", label="calibrated")
    axes.plot(
        [score[number] for number in there],
        [precision[number] for number in there],
        marker="o",
        label="detections",
    )
    axes.set(xlabel="mean score", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small")
    return svg_uri(figure)


def new_figure(*, height: float = 3.0) -> tuple[Figure, Any]:
    """A figure of the width of all charts, ``height`` inches high, and its axes."""
    figure = Figure(figsize=(5.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def svg_uri(figure: Figure) -> str:
    """A figure as an image that a page can hold in itself."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        # That matplotlib has no glyph to measure does not keep the browser from drawing it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(target, format="svg", metadata={"Date": None})
    return image_uri(target.getvalue(), "svg+xml")
