"""A wish to stop, between two attempts and within one."""

from __future__ import annotations

import threading
from pathlib import Path

from orchestrator.errors import PreemptedError
from orchestrator.storage.run_files import EVENTS, STOP
from orchestrator.tracking.events import METRICS, read_events
from orchestrator.tracking.goodput import ATTEMPT


class StopWish:
    """A wish to stop, of whoever signals the driver, on its way to the workers.

    Args:
        run_dir: the driver's run folder, where they look for it.

    Attributes:
        asked: set once somebody has asked, or waits no more for what the workers do.
    """

    def __init__(self, run_dir: Path) -> None:
        self.asked = threading.Event()
        self._file = run_dir / STOP
        self._log = run_dir / EVENTS
        self._begun_at = 0
        self._file.unlink(missing_ok=True)

    def ask(self) -> None:
        """Have the workers finish their step, commit and end."""
        self.asked.set()
        self.ask_workers()

    def ask_workers(self) -> None:
        """The same, for others to go on."""
        self._file.touch()

    def begin_attempt(self, *, for_others: bool) -> None:
        """Let workers begin, unless somebody has asked to stop.

        Args:
            for_others: whether :meth:`ask_workers` was called for these; an attempt that failed
                may have left the wish there.

        Raises:
            PreemptedError: somebody has.
        """
        if for_others:
            self._file.unlink(missing_ok=True)
        # After that: whoever asks sets it first.
        self.check()
        for event in read_events(self._log, self._begun_at):
            self._begun_at = event.end

    def check(self) -> None:
        """Raise :class:`PreemptedError` if somebody has asked to stop."""
        if self.asked.is_set():
            raise self.error()

    def is_before_training(self) -> bool:
        """Whether the workers of the present attempt have not begun yet."""
        # Of a log that was cut, what says that they have begun may be gone.
        begun = (ATTEMPT, METRICS)
        return all(event.kind not in begun for event in read_events(self._log, self._begun_at))

    @staticmethod
    def error() -> PreemptedError:
        """For a stop while no step is under way."""
        return PreemptedError(
            "asked to stop while no worker was training; what was committed before is there. Next: "
            "run the same command again to go on"
        )
