"""The charts of a report, as SVG images that a page can hold in itself."""

from __future__ import annotations

import base64
import io
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

_RECALLS = [number / 100 for number in range(101)]
#: More lines than this in one chart cannot be told apart.
MOST_LINES = 10

#: From this ratio of a curve's highest value to its median on, its scale is logarithmic.
_CLIFF = 8.0
#: Least right end of a scale of bars.
LEAST_SCALE = 0.05
#: Okabe and Ito's colours, told apart by people of any colour vision, and two more.
_PALETTE = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00",
    "#56b4e9", "#000000", "#b8a800", "#7f7f7f", "#6a3d9a",
)  # fmt: skip

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


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each name, the same wherever it occurs on a page; after ten they repeat."""
    return {name: _PALETTE[place % len(_PALETTE)] for place, name in enumerate(names)}


@styled
def lines(
    series: Mapping[str, Points],
    *,
    y_label: str,
    x_label: str = "step",
    colour: Mapping[str, str] | None = None,
) -> str:
    """Curves over steps; values that are not finite leave gaps.

    The scale is logarithmic where a cliff at the beginning would flatten what follows it.

    Args:
        series: by name.
        y_label: of the values.
        x_label: of their places.
        colour: of each name; None gives colours in order. With it the legend is always there, for
            another chart of the page may show another choice of names.
    """
    figure, axes = new_figure()
    chosen = colours(list(series)) if colour is None else colour
    for name, points in list(series.items())[:MOST_LINES]:
        marker = "o" if len(points) < 3 else None
        xs, ys = [x for x, _ in points], [y for _, y in points]
        axes.plot(xs, ys, label=name, marker=marker, color=chosen[name])
    if _is_cliff(series.values()):
        axes.set_yscale("log")
        # The usual formatters write formulae, which are switched off for the sake of names.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
        axes.yaxis.set_minor_formatter("{x:g}")
    # Steps and epochs are counted.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(series) > 1 or colour is not None:
        axes.legend(fontsize="small")
    return svg_uri(figure)


def _is_cliff(series: Iterable[Points]) -> bool:
    """Whether some curve falls so far that most of it would lie on the floor of a linear scale."""
    columns = [[y for _, y in points] for points in series if points]
    if not columns or any(y <= 0 for column in columns for y in column):
        return False
    return any(max(column) >= _CLIFF * statistics.median(column) for column in columns)


@styled
def bars(
    values: Mapping[str, float], *, x_label: str, colour: Mapping[str, str] | None = None
) -> str:
    """A horizontal bar for each name; a value below 0 says that there is nothing to show."""
    figure, axes = new_figure(height=max(1.6, 0.8 + 0.22 * len(values)))
    names = list(values)
    shown = None if colour is None else [colour[name] for name in names]
    axes.barh(names, [max(values[name], 0.0) for name in names], color=shown)
    for place, name in enumerate(names):
        text = "-" if values[name] < 0 else f"{values[name]:.3f}"
        axes.text(max(values[name], 0.0), place, f" {text}", va="center", fontsize="small")
    axes.invert_yaxis()
    # What is written as 0.000 has no long bar.
    axes.set_xlim(0.0, max(LEAST_SCALE, 1.15 * max(values.values(), default=0.0)))
    axes.set_xlabel(x_label)
    return svg_uri(figure)


@styled
def precision_recall(
    curves: Mapping[str, Sequence[float]], *, colour: Mapping[str, str] | None = None
) -> str:
    """Precision at the recalls 0.00, 0.01 ... 1.00."""
    figure, axes = new_figure()
    chosen = colours(list(curves)) if colour is None else colour
    for name, precision in list(curves.items())[:MOST_LINES]:
        axes.plot(_RECALLS, precision, label=name, color=chosen[name])
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
