"""A comparison as one HTML page that holds everything in itself, charts too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.evaluation.coco import METRICS
from orchestrator.evaluation.significance import Effect, Significance
from orchestrator.pages import charts
from orchestrator.pages.document import (
    Block,
    Figure,
    Legend,
    Row,
    Section,
    Table,
    Text,
    facts_table,
    number,
    render,
)
from orchestrator.runs.compare.charts import grouped_bars, intervals, parallel_coordinates
from orchestrator.runs.compare.comparison import Comparison, Contrast, Spread, value_text
from orchestrator.runs.compare.run_folder import RunFolder
from orchestrator.storage.atomic import write_atomic

#: More curves, groups or classes than this cannot be told apart in one chart.
_MOST = charts.MOST_LINES
_MOST_CLASSES = 20
_MOST_SETTINGS = 8
#: So many settings can still be read where their chart shrinks to a narrow screen.
_MOST_NARROW = 3


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page of a comparison."""
    # Verdicts may name files of folders whose names are no text.
    write_atomic(path, render_page(comparison).encode("utf-8", "backslashreplace"))


def render_page(comparison: Comparison) -> str:
    """The page of :func:`write_page` as text."""
    return render(f"Comparison of {len(comparison.runs)} runs", _sections(comparison))


def _sections(comparison: Comparison) -> Iterator[Section]:
    colours = charts.colours([run.name for run in comparison.runs])
    yield Section("", tuple(Text(one.verdict, "verdict") for one in comparison.contrasts))
    yield Section("COCO numbers", (_numbers(comparison, colours),))
    yield Section("Seeds", tuple(_seeds(comparison, colours)))
    yield Section("What was set differently", tuple(_settings(comparison, colours)))
    yield Section("Curves", tuple(_curves(comparison, colours)))
    yield Section("Classes", tuple(_classes(comparison, colours)))
    for contrast in comparison.contrasts:
        if contrast.significance is not None:
            yield Section(
                f"{contrast.after} against {contrast.before}",
                tuple(_effects(contrast, contrast.significance)),
            )


def _numbers(comparison: Comparison, colours: Mapping[str, str]) -> Table:
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
    head = ("run", "seed", "state", "steps", *METRICS)
    return facts_table(head, rows, values=True, colours=colours)


def _seeds(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Block]:
    several = [group for group in comparison.groups if len(group.by_seed) > 1]
    if not several:
        return
    yield Text("Mean and range of runs that differ in nothing but their seed.")
    rows = [
        (
            group.name,
            ", ".join(str(run.seed) for run in group.by_seed),
            *(spread_words(group.metric(name)) for name in METRICS[:3]),
        )
        for group in several
    ]
    by_group = {group.name: colours[group.runs[0].name] for group in several}
    yield facts_table(("experiment", "seeds", *METRICS[:3]), rows, values=True, colours=by_group)


def _settings(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Block]:
    settings = comparison.settings
    if not settings:
        yield Text("Nothing: the runs are of one experiment.")
        return
    rows: Iterable[tuple[str, ...]]
    if len(comparison.runs) <= _MOST_SETTINGS:
        head = ("", *(run.name for run in comparison.runs))
        rows = ((path, *map(value_text, values)) for path, values in settings.items())
    else:
        head = ("run", *settings, "AP")
        rows = (
            (
                run.name,
                *(value_text(v[i]) for v in settings.values()),
                number(run.metrics.get("AP")),
            )
            for i, run in enumerate(comparison.runs)
        )
    yield facts_table(head, rows, values=True, colours=colours)
    scored = [i for i, run in enumerate(comparison.runs) if "AP" in run.metrics]
    swept = [path for path in settings if not path.endswith("(sha256)")][:_MOST_SETTINGS]
    if len(scored) > 1 and set(swept) - {"seed"}:
        chart = parallel_coordinates(
            {path: [settings[path][i] for i in scored] for path in swept},
            [comparison.runs[i].metrics["AP"] for i in scored],
            label="AP",
        )
        wide = len(swept) > _MOST_NARROW
        yield Figure(chart, "from settings to AP, one line a run; yellow is best", wide=wide)


def _curves(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Block]:
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
            label = title.partition(",")[0]
            chart = charts.lines(series, y_label=label, x_label="epoch", colour=colours)
            lacking = [name for name in curves if name not in series]
            note = f"; none of {', '.join(lacking)}" if lacking else ""
            pictures.append(Figure(chart, title + note))
    if pictures:
        if len(runs) < len(comparison.runs):
            yield Text(f"The {len(runs)} runs of the highest AP.")
        yield Legend({run.name: colours[run.name] for run in runs})
        yield Row(tuple(pictures))


def _shown(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The best runs, as many as a chart can hold, in their order."""
    ranked = sorted(runs, key=lambda run: -run.metrics.get("AP", -1.0))[:_MOST]
    return [run for run in runs if run in ranked]


def _classes(comparison: Comparison, colours: Mapping[str, str]) -> Iterator[Block]:
    names = comparison.class_names
    if not names:
        return
    groups = comparison.groups
    sides: dict[str, dict[str, Spread | None]]
    if len(groups) > 1:
        sides = {group.name: {n: group.class_ap(n) for n in names} for group in groups}
        by_side = {group.name: colours[group.runs[0].name] for group in groups}
    else:
        sides = {
            run.name: {n: Spread.of([ap] if (ap := run.classes.get(n, -1.0)) >= 0 else [])
                       for n in names}
            for run in groups[0].runs
        }  # fmt: skip
        by_side = dict(colours)
    shown = dict(list(sides.items())[:_MOST])
    spread = len(groups) > 1 and any(len(group.by_seed) > 1 for group in groups)
    caption = "AP by class" + (", mean and range over seeds" if spread else "")
    if len(names) > _MOST_CLASSES or len(sides) > _MOST:
        caption += f"; the first {min(len(names), _MOST_CLASSES)} classes, {len(shown)} of them"
    chart = grouped_bars(shown, names[:_MOST_CLASSES], x_label="AP", colour=by_side)
    rows = ((n, *(spread_words(side[n]) for side in shown.values())) for n in names)
    yield Row((Figure(chart, caption), facts_table(("class", *shown), rows, values=True)))


def _effects(contrast: Contrast, found: Significance) -> Iterator[Block]:
    yield Text(method_words(found))
    if contrast.note:
        yield Text(contrast.note)
    classes = dict(
        sorted(found.classes.items(), key=lambda item: -abs(item[1].difference))[:_MOST_CLASSES]
    )
    effects = {**found.numbers, **classes}
    caption = (
        f"difference and its {found.level:.0%} interval; filled where significant"
        + (f"; the {len(classes)} classes that changed most" if classes != found.classes else "")
    )  # fmt: skip
    chart = Figure(intervals(effects, x_label="difference in AP"), caption)
    head = ("", "before", "after", "difference", f"{found.level:.0%} interval", "p", "")
    rows = (effect_row(name, one) for name, one in effects.items())
    yield Row((chart, facts_table(head, rows, values=True)))


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
