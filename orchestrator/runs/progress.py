"""What a person sees while a run trains: a bar and a line in a terminal, plain lines elsewhere.

It follows the run's event log like every other reader, so workers on other nodes are shown the
same way as those on this machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from orchestrator.errors import printable, say
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.events import METRICS, Event, read_events
from orchestrator.tracking.goodput import BOOKKEEPING
from orchestrator.training.job import TrainingJob

_POLL_SECONDS = 0.5
#: Lines about losses are this far apart where nobody looks at a live line.
_PLAIN_SECONDS = 15.0
#: Without a step for so long, the live line says since when; it would look alive otherwise.
_SILENT_SECONDS = 20.0
#: Events with which workers begin, or begin again.
_BEGINNING = ("start", "resume")


def duration(seconds: float) -> str:
    """``h:mm:ss`` or ``m:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Narrator:
    """Turns events into lines, and keeps the one line that says where training is.

    Args:
        total_steps: of the run.
        epochs: of the run.
        batch_size: images of one step, over all workers.

    Attributes:
        line: where training was last.
        waiting: what is said instead until workers that began again have done a step; else empty.
        step: optimizer steps done, which goes back where the workers begin again.
    """

    def __init__(self, *, total_steps: int, epochs: int, batch_size: int) -> None:
        self.total_steps = total_steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.line = "starting workers"
        self.waiting = ""
        self.step = 0
        self._rate = 0.0

    def tell(self, event: Event) -> str | None:
        """Take note of an event; returns a line if it deserves one of its own."""
        values = event.values
        if event.kind in _BEGINNING:
            # What was said before belonged to workers that are gone.
            self.step, self._rate = event.step, 0.0
            self.waiting = f"step {event.step}/{self.total_steps}  waiting for the first batch"
        if "train/loss" in values:
            self.step, self.waiting = event.step, ""
            rate = values["train/images_per_s"]
            # A moving average: single steps jump when a batch or a checkpoint is late.
            self._rate = rate if self._rate == 0.0 else 0.9 * self._rate + 0.1 * rate
            left = (self.total_steps - event.step) * self.batch_size / max(self._rate, 1e-9)
            self.line = (
                f"epoch {values['train/epoch']:.2f}/{self.epochs}  "
                f"step {event.step}/{self.total_steps}  loss {values['train/loss']:.4f}  "
                f"{self._rate:.1f} images/s  {duration(left)} left"
            )
            return None
        if "val/AP" in values:
            return (
                f"step {event.step}: val AP {values['val/AP']:.4f}, "
                f"AP50 {values['val/AP50']:.4f}, AP75 {values['val/AP75']:.4f}"
            )
        if event.kind == METRICS or event.kind in BOOKKEEPING:
            return None
        return f"step {event.step}: {event.kind}: {event.text}"


@contextmanager
def shown_progress(job: TrainingJob, console: Console, *, offset: int) -> Iterator[None]:
    """Show progress of ``job`` while the block runs.

    Args:
        job: whose event log is followed.
        console: a terminal gets a live line, anything else plain lines now and then.
        offset: where in the log to begin, so that a resumed run does not repeat the past.
    """
    narrator = Narrator(
        total_steps=job.total_steps,
        epochs=job.experiment.train.epochs,
        batch_size=job.schedule.batch_size,
    )
    over = threading.Event()
    bar = _Bar(console, narrator) if console.is_terminal else None
    follower = threading.Thread(
        target=_follow,
        args=(job.path / EVENTS, offset, narrator, console, bar, over),
        name="progress",
        daemon=True,
    )
    if bar is not None:
        bar.progress.start()
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        if bar is not None:
            bar.progress.stop()


class _Bar:
    """A bar of the steps and the narrator's line behind it; both go away in the end."""

    def __init__(self, console: Console, narrator: Narrator) -> None:
        self._narrator = narrator
        self._changed = time.monotonic()
        self._shown = narrator.line
        self.progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self.progress.add_task(narrator.line, total=narrator.total_steps)

    def update(self) -> None:
        """Show where training is, and since when nothing was heard of it."""
        line, now = self._narrator.waiting or self._narrator.line, time.monotonic()
        if line != self._shown:
            self._shown, self._changed = line, now
        silent = now - self._changed
        if silent > _SILENT_SECONDS:
            line += f"  (no news for {duration(silent)})"
        self.progress.update(self._task, completed=self._narrator.step, description=printable(line))


def _follow(
    log: Path,
    offset: int,
    narrator: Narrator,
    console: Console,
    bar: _Bar | None,
    over: threading.Event,
) -> None:
    shown = narrator.line
    due = time.monotonic()
    while True:
        last_round = over.is_set()
        for event in read_events(log, offset):
            offset = event.end
            line = narrator.tell(event)
            if line is not None:
                say(console, line)
        if bar is not None:
            bar.update()
        elif narrator.line != shown and time.monotonic() >= due:
            shown, due = narrator.line, time.monotonic() + _PLAIN_SECONDS
            say(console, shown)
        if last_round:
            return
        over.wait(_POLL_SECONDS)
