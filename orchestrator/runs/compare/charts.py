"""The charts that put runs beside each other, as SVG images that a page can hold in itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize

from orchestrator.config.resolve import MaybeScalar
from orchestrator.evaluation.significance import Effect
from orchestrator.pages import charts
from orchestrator.runs.compare.comparison import Spread, value_text

#: A scale is logarithmic from this ratio of its ends.
_WIDE = 20.0


@charts.styled
def grouped_bars(
    groups: Mapping[str, Mapping[str, Spread | None]],
    names: Sequence[str],
    *,
    x_label: str,
    colour: Mapping[str, str],
) -> str:
    """For every name one bar a group, and from the least to the greatest of several runs a whisker.

    Args:
        groups: by group, then by name; None where there is nothing to show.
        names: from top to bottom.
        x_label: of the values.
        colour: of each group.
    """
    figure, axes = charts.new_figure(height=max(1.8, 0.9 + 0.2 * len(names) * (len(groups) + 0.6)))
    thick = 0.8 / len(groups)
    for number, (group, values) in enumerate(groups.items()):
        shown = [(at, one) for at, name in enumerate(names) if (one := values.get(name))]
        axes.barh(
            [at + (number - (len(groups) - 1) / 2) * thick for at, _ in shown],
            [one.mean for _, one in shown],
            height=thick * 0.92,
            label=group,
            color=colour[group],
        )
        ranges = [(at, one) for at, one in shown if one.low < one.high]
        axes.errorbar(
            [one.mean for _, one in ranges],
            [at + (number - (len(groups) - 1) / 2) * thick for at, _ in ranges],
            xerr=[
                [one.mean - one.low for _, one in ranges],
                [one.high - one.mean for _, one in ranges],
            ],
            fmt="none",
            ecolor="black",
            linewidth=1,
            capsize=2,
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0.0, max(charts.LEAST_SCALE, axes.get_xlim()[1]))
    axes.set_xlabel(x_label)
    if len(groups) > 1:
        axes.legend(fontsize="small")
    return charts.svg_uri(figure)


@charts.styled
def intervals(effects: Mapping[str, Effect], *, x_label: str) -> str:
    """Every difference with its confidence interval; filled where it is significant."""
    figure, axes = charts.new_figure(height=max(1.6, 0.8 + 0.26 * len(effects)))
    axes.axvline(0.0, color="grey", linewidth=1)
    for at, one in enumerate(effects.values()):
        axes.errorbar(
            one.difference,
            at,
            xerr=[[one.difference - one.low], [one.high - one.difference]],
            marker="o",
            color="tab:blue",
            markerfacecolor="tab:blue" if one.significant else "white",
            capsize=3,
        )
    axes.set_yticks(range(len(effects)), list(effects))
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.set_xlabel(x_label)
    return charts.svg_uri(figure)


@charts.styled
def parallel_coordinates(
    columns: Mapping[str, Sequence[MaybeScalar]], outcome: Sequence[float], *, label: str
) -> str:
    """One line a run through its settings to what came of them; yellow is best.

    Numbers lie on a scale from their least to their greatest, logarithmic where that is wide;
    anything else on steps.

    Args:
        columns: by setting, the value of every run.
        outcome: of every run.
        label: of the outcome.
    """
    scaled, ticks = [], []
    for values in (*columns.values(), outcome):
        heights, marks = _scale(values)
        scaled.append(heights)
        ticks.append(marks)
    figure, axes = charts.new_figure(height=3.4)
    figure.set_figwidth(max(5.2, 1.9 * len(scaled)))
    best = Normalize(min(outcome), max(outcome))
    places = np.array(scaled)
    for run in np.argsort(outcome).tolist():
        axes.plot(places[:, run], color=colormaps["viridis"](best(outcome[run])), alpha=0.85)
    for at, marks in enumerate(ticks):
        axes.axvline(at, color="grey", linewidth=0.8)
        for height, text in marks.items():
            axes.text(
                at + 0.02,
                height,
                text,
                fontsize="small",
                va="center",
                bbox={"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"},
            )
    # A part of the path a line, for the columns are narrower than many a path.
    names = [path.removeprefix("train.").replace(".", ".\n") for path in columns]
    axes.set_xticks(range(len(scaled)), [*names, label], fontsize="small")
    axes.set_xlim(-0.1, len(scaled) - 0.6)
    axes.set_ylim(-0.08, 1.08)
    axes.set_yticks([])
    axes.grid(visible=False)
    return charts.svg_uri(figure)


def _scale(values: Sequence[MaybeScalar]) -> tuple[list[float], dict[float, str]]:
    """Heights from 0 to 1, and what is written at which."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values) or not numbers:
        names = list(dict.fromkeys(map(value_text, values)))
        places = {name: at / max(1, len(names) - 1) for at, name in enumerate(names)}
        return [places[value_text(v)] for v in values], {at: name for name, at in places.items()}
    low, high = min(numbers), max(numbers)
    if low == high:
        return [0.5] * len(numbers), {0.5: f"{low:.4g}"}
    marks = {0.0: f"{low:.4g}", 1.0: f"{high:.4g}"}
    line = np.asarray(numbers, np.float64)
    if low > 0 and high / low >= _WIDE:
        line = np.log(line)
        marks[0.5] = f"{(low * high) ** 0.5:.2g}"
    heights: list[float] = ((line - line.min()) / (line.max() - line.min())).tolist()
    return heights, marks
