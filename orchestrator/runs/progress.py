"""What a person sees while a run trains: one live line in a terminal, plain lines elsewhere.

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
from rich.markup import escape
from rich.status import Status

from orchestrator.errors import printable
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.events import METRICS, Event, read_events
from orchestrator.tracking.goodput import BOOKKEEPING
from orchestrator.training.job import TrainingJob

_POLL_SECONDS = 0.5
#: Lines about losses are this far apart where nobody looks at a live line.
_PLAIN_SECONDS = 15.0


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
    """

    def __init__(self, *, total_steps: int, epochs: int, batch_size: int) -> None:
        self.total_steps = total_steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.line = "starting workers"
        self._rate = 0.0

    def tell(self, event: Event) -> str | None:
        """Take note of an event; returns a line if it deserves one of its own."""
        values = event.values
        if "train/loss" in values:
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
    status = console.status(narrator.line) if console.is_terminal else None
    follower = threading.Thread(
        target=_follow,
        args=(job.path / EVENTS, offset, narrator, console, status, over),
        name="progress",
        daemon=True,
    )
    if status is not None:
        status.start()
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        if status is not None:
            status.stop()


def _follow(
    log: Path,
    offset: int,
    narrator: Narrator,
    console: Console,
    status: Status | None,
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
                console.print(printable(line), highlight=False, markup=False)
        if status is not None:
            status.update(escape(printable(narrator.line)))
        elif narrator.line != shown and time.monotonic() >= due:
            shown, due = narrator.line, time.monotonic() + _PLAIN_SECONDS
            console.print(printable(shown), highlight=False, markup=False)
        if last_round:
            return
        over.wait(_POLL_SECONDS)
