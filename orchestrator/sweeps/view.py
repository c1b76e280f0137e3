"""A running sweep in the terminal: a live table there, plain lines elsewhere.

Everything shown is read from the trials' event logs, so trials on any node look the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from orchestrator.config.schema import SweepConfig
from orchestrator.errors import say
from orchestrator.runs.progress import duration
from orchestrator.storage.run_files import EVENTS
from orchestrator.sweeps.judge import judged_epochs
from orchestrator.sweeps.report import Row, ranking
from orchestrator.tracking.events import read_events

_POLL_SECONDS = 1.0
#: Plain lines about progress are this far apart where nobody looks at a live table.
_PLAIN_SECONDS = 30.0
_BLOCKS = "▁▂▃▄▅▆▇█"
#: Rows of the live table: what runs, then the best of what has ended.
_ROWS = 20
_FINAL = ("done", "stopped", "failed")


def sparkline(values: Sequence[float], top: float) -> str:
    """One block for each value, as high as its share of ``top``."""
    scale = (len(_BLOCKS) - 1) / top if top > 0 else 0.0
    return "".join(_BLOCKS[round(min(max(value, 0.0), top) * scale)] for value in values)


@dataclass
class _Curve:
    """What the log of one trial says so far."""

    offset: int = 0
    epoch: float = 0.0
    scores: list[float] = field(default_factory=list)
    #: Of the trial when its log was read last; None while it runs.
    state: str | None = None

    def read(self, log: Path, metric: str) -> None:
        for event in read_events(log, self.offset):
            self.offset = event.end
            self.epoch = event.values.get("train/epoch", event.values.get("val/epoch", self.epoch))
            if "val/epoch" in event.values:
                self.scores.append(event.values.get(metric, 0.0))


class View:
    """Turns rows and logs into a table and a headline.

    Args:
        folder: of the sweep.
        sweep: its section.
        epochs: full age of a trial.
        total: trials of the whole sweep.
        rows: the trials as they stand.
        running: names of those under way.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        folder: Path,
        sweep: SweepConfig,
        *,
        epochs: int,
        total: int,
        rows: Callable[[], list[Row]],
        running: Callable[[], set[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._sweep = sweep
        self._epochs = epochs
        self._total = total
        self._rows = rows
        self._running = running
        self._clock = clock
        self._curves: dict[str, _Curve] = {}
        self._ages = judged_epochs(sweep.asha, epochs) if sweep.scheduler == "asha" else ()
        #: Clock and epochs trained when this start of the sweep was looked at first.
        self._began: tuple[float, float] | None = None

    def refresh(self) -> None:
        """Read what is new in the logs."""
        running = self._running()
        for row in self._rows():
            name = row.trial.name
            curve = self._curves.setdefault(name, _Curve())
            # Thousands may wait, or have ended, and nothing is added to their logs.
            if name in running or curve.state != row.state:
                curve.read(self._folder / name / EVENTS, self._sweep.metric)
                curve.state = None if name in running else row.state
        if self._began is None:
            self._began = (self._clock(), self._trained())

    def _trained(self) -> float:
        """Epochs of all trials so far."""
        return sum(curve.epoch for curve in self._curves.values())

    def _expected(self, epoch: float) -> float:
        """Epochs still to come for a trial of this age, as far as ASHA lets one go on average."""
        share, at, total = 1.0, epoch, 0.0
        for age in (*(age for age in self._ages if age > epoch), self._epochs):
            total += share * (age - at)
            share, at = share / self._sweep.asha.reduction_factor, float(age)
        return total

    def _to_come(self) -> float:
        """Epochs that the sweep is expected to train yet."""
        rows = self._rows()
        running = self._running()
        open_rows = [r for r in rows if r.state not in _FINAL or r.trial.name in running]
        ages = [self._curves.get(row.trial.name, _Curve()).epoch for row in open_rows]
        unknown = max(0, self._total - len(rows))
        return sum(self._expected(min(age, self._epochs)) for age in ages) + (
            unknown * self._expected(0.0)
        )

    def headline(self) -> str:
        """States, best so far and time left, on one line."""
        rows = self._rows()
        running = self._running()
        counts = {
            "running": len(running),
            **{
                # One that failed may be under way again.
                state: sum(r.state == state and r.trial.name not in running for r in rows)
                for state in _FINAL
            },
        }
        text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        waiting = self._total - sum(counts.values())
        line = f"{text or 'starting'}, {max(0, waiting)} to come"
        ranked = ranking(rows, self._sweep)
        if ranked:
            best = ranked[0]
            line += f"; best {best.trial.name}: {self._sweep.metric} "
            line += f"{best.value(self._sweep.metric):.4f}"
        left = self._left()
        return line if left is None else f"{line}; about {duration(left)} left"

    def _left(self) -> float | None:
        """Seconds, from the pace of this start; None before a trial's worth has been trained."""
        if self._began is None:
            return None
        since, before = self._began
        trained = self._trained() - before
        # Until then starting and compiling, which come once, are most of what was seen.
        if trained < self._expected(0.0):
            return None
        return (self._clock() - since) * self._to_come() / trained

    def table(self) -> Table:
        """Trials under way first, then the best of the others."""
        running = self._running()
        rows = self._rows()
        ranked = ranking(rows, self._sweep)
        shown = [row for row in rows if row.trial.name in running]
        shown += [row for row in ranked if row.trial.name not in running]
        top = max((max(c.scores) for c in self._curves.values() if c.scores), default=0.0)
        table = Table("trial", "state", "epoch", self._sweep.metric, "curve", "values")
        table.title = escape(self.headline())
        for row in shown[:_ROWS]:
            curve = self._curves.get(row.trial.name, _Curve())
            table.add_row(
                row.trial.name,
                "running" if row.trial.name in running else row.state,
                f"{curve.epoch:.1f}/{self._epochs}",
                f"{curve.scores[-1]:.4f}" if curve.scores else "",
                sparkline(curve.scores, top),
                escape(row.trial.text()),
            )
        return table


@contextmanager
def shown(view: View, console: Console) -> Iterator[None]:
    """Keep ``view`` on the screen while the block runs; plain lines where there is none."""
    over = threading.Event()
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    thread = threading.Thread(
        target=_show, args=(view, console, live, over), name="view", daemon=True
    )
    if live is not None:
        live.start()
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if live is not None:
            live.stop()


def _show(view: View, console: Console, live: Live | None, over: threading.Event) -> None:
    said, due = "", time.monotonic() + _PLAIN_SECONDS
    while not over.wait(_POLL_SECONDS):
        with suppress(OSError):  # Looked at again, as long as a disk or mount may take.
            view.refresh()
        if live is not None:
            live.update(view.table(), refresh=True)
        elif time.monotonic() >= due:
            due = time.monotonic() + _PLAIN_SECONDS
            line = view.headline()
            if line != said:
                said = line
                say(console, line)
