"""A comparison as one HTML page that holds everything in itself, charts too."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from orchestrator.evaluation.coco import METRICS
from orchestrator.evaluation.page import document, figure, number, table
from orchestrator.evaluation.significance import Effect, Significance
from orchestrator.pages import charts
from orchestrator.runs.compare.charts import grouped_bars, intervals, parallel_coordinates
from orchestrator.runs.compare.comparison import Comparison, Contrast, Spread
from orchestrator.runs.compare.run_folder import RunFolder
from orchestrator.storage.atomic import write_atomic

#: More curves, groups or classes than this cannot be told apart in one chart.
_MOST = charts.MOST_LINES
_MOST_CLASSES = 20
_MOST_SETTINGS = 8

#: Of this page, beside what all pages have.
_STYLE = """
.wide { font-size: .86em; } .wide td:first-child { white-space: nowrap; }
.verdict { font-size: 1.1em; }
"""


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page of a comparison."""
    write_atomic(path, render_page(comparison).encode("utf-8"))


def render_page(comparison: Comparison) -> str:
    """The page of :func:`write_page` as text."""
    body = "\n".join(_sections(comparison))
    return document(_title(comparison), body, style=_STYLE)


def _title(comparison: Comparison) -> str:
    return f"Comparison of {len(comparison.runs)} runs"


def _sections(comparison: Comparison) -> Iterator[str]:
    yield f"<h1>{_title(comparison)}</h1>"
    for contrast in comparison.contrasts:
        yield f'<p class="verdict">{html.escape(contrast.verdict)}</p>'
    yield from _numbers(comparison)
    yield from _settings(comparison)
    yield from _curves(comparison)
    yield from _classes(comparison)
    for contrast in comparison.contrasts:
        if contrast.significance is not None:
            yield from _effects(contrast, contrast.significance)


def _numbers(comparison: Comparison) -> Iterator[str]:
    yield "<h2>COCO numbers</h2>"
    rows = [
        (
            run.name,
            str(run.seed),
            run.state,
            str(run.steps),
            *(number(run.metrics.get(name)) for name in METRICS),
        )
        for run in comparison.runs
    ]
    yield table(("run", "seed", "state", "steps", *METRICS), rows, values=True)
    several = [group for group in comparison.groups if len(group.by_seed) > 1]
    if several:
        yield "<h2>Seeds</h2>"
        yield '<p class="note">Mean and range of runs that differ in nothing but their seed.</p>'
        rows = [
            (
                group.name,
                ", ".join(str(run.seed) for run in group.by_seed),
                *(spread_words(group.metric(name)) for name in METRICS[:3]),
            )
            for group in several
        ]
        yield table(("experiment", "seeds", *METRICS[:3]), rows, values=True)


def _settings(comparison: Comparison) -> Iterator[str]:
    yield "<h2>What was set differently</h2>"
    settings = comparison.settings
    if not settings:
        yield '<p class="note">Nothing: the runs are of one experiment.</p>'
        return
    rows: Iterable[tuple[str, ...]]
    if len(comparison.runs) <= _MOST_SETTINGS:
        head = ("", *(run.name for run in comparison.runs))
        rows = ((path, *map(str, values)) for path, values in settings.items())
    else:
        head = ("run", *settings, "AP")
        rows = (
            (run.name, *(str(v[i]) for v in settings.values()), number(run.metrics.get("AP")))
            for i, run in enumerate(comparison.runs)
        )
    yield table(head, rows, values=True)
    scored = [i for i, run in enumerate(comparison.runs) if "AP" in run.metrics]
    swept = [path for path in settings if not path.endswith("(sha256)")][:_MOST_SETTINGS]
    if len(scored) > 1 and set(swept) - {"seed"}:
        chart = parallel_coordinates(
            {path: [settings[path][i] for i in scored] for path in swept},
            [comparison.runs[i].metrics["AP"] for i in scored],
            label="AP",
        )
        yield figure(chart, "from settings to AP, one line a run")


def _curves(comparison: Comparison) -> Iterator[str]:
    runs = _shown(comparison.runs)
    pictures = []
    for title, curves in (
        ("training loss, mean of every epoch", {r.name: r.epoch_means("train/loss") for r in runs}),
        ("AP on val", {r.name: r.curve("val/AP") for r in runs}),
        ("AP50 on val", {r.name: r.curve("val/AP50") for r in runs}),
        ("learning rate", {r.name: r.curve("train/lr") for r in runs}),
    ):
        series = {name: points for name, points in curves.items() if points}
        if series:
            chart = charts.lines(series, y_label=title.partition(",")[0], x_label="epoch")
            pictures.append(figure(chart, title))
    if pictures:
        yield "<h2>Curves</h2>"
        if len(runs) < len(comparison.runs):
            yield f'<p class="note">The {len(runs)} runs of the highest AP.</p>'
        yield f'<div class="row">{"".join(pictures)}</div>'


def _shown(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The best runs, as many as a chart can hold, in their order."""
    ranked = sorted(runs, key=lambda run: -run.metrics.get("AP", -1.0))[:_MOST]
    return [run for run in runs if run in ranked]


def _classes(comparison: Comparison) -> Iterator[str]:
    names = comparison.class_names
    if not names:
        return
    yield "<h2>Classes</h2>"
    groups = comparison.groups
    several = len(groups) > 1
    sides: dict[str, dict[str, Spread | None]]
    if several:
        sides = {group.name: {n: group.class_ap(n) for n in names} for group in groups}
    else:
        sides = {
            run.name: {n: Spread.of([ap] if (ap := run.classes.get(n, -1.0)) >= 0 else [])
                       for n in names}
            for run in groups[0].runs
        }  # fmt: skip
    shown = dict(list(sides.items())[:_MOST])
    yield '<div class="row">'
    caption = "AP by class" + (", mean and range over seeds" if several else "")
    if len(names) > _MOST_CLASSES or len(sides) > _MOST:
        caption += f"; the first {min(len(names), _MOST_CLASSES)} classes, {len(shown)} of them"
    chart = grouped_bars(shown, names[:_MOST_CLASSES], x_label="AP")
    yield figure(chart, caption)
    rows = ((n, *(spread_words(side[n]) for side in shown.values())) for n in names)
    yield table(("class", *shown), rows, values=True)
    yield "</div>"


def _effects(contrast: Contrast, found: Significance) -> Iterator[str]:
    yield f"<h2>{html.escape(contrast.after)} against {html.escape(contrast.before)}</h2>"
    yield f'<p class="note">{html.escape(method_words(found))}</p>'
    if contrast.note:
        yield f'<p class="note">{html.escape(contrast.note)}</p>'
    classes = dict(
        sorted(found.classes.items(), key=lambda item: -abs(item[1].difference))[:_MOST_CLASSES]
    )
    effects = {**found.numbers, **classes}
    yield '<div class="row">'
    caption = (
        f"difference and its {found.level:.0%} interval; filled where significant"
        + (f"; the {len(classes)} classes that changed most" if classes != found.classes else "")
    )  # fmt: skip
    yield figure(intervals(effects, x_label="difference in AP"), caption)
    head = ("", "before", "after", "difference", f"{found.level:.0%} interval", "p", "")
    yield table(head, (effect_row(name, one) for name, one in effects.items()), values=True)
    yield "</div>"


def effect_row(name: str, one: Effect) -> tuple[str, ...]:
    """A line of a table of effects."""
    return (
        name,
        number(one.before),
        number(one.after),
        f"{one.difference:+.4f}",
        f"{one.low:+.4f} to {one.high:+.4f}",
        f"{one.p:.2g}",
        "significant" if one.significant else "",
    )


def method_words(found: Significance) -> str:
    """How a significance was found."""
    seeds = (
        f"; the spread among {found.seeds} runs that differ by their seed is part of it"
        if found.seeds
        else "; one run a side, so what another seed would give is not in it"
    )
    return (
        f"Paired bootstrap over {found.images} images, {found.resamples} draws, detections of the "
        f"last evaluation{seeds}. p-values of classes allow for their number (Holm)."
    )


def spread_words(spread: Spread | None) -> str:
    """Mean and range, or the value where there is but one."""
    if spread is None:
        return "-"
    if spread.low == spread.high:
        return f"{spread.mean:.4f}"
    return f"{spread.mean:.4f} ({spread.low:.4f} to {spread.high:.4f})"
