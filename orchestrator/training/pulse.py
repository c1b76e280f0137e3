"""How far the training of this process has come, for whoever watches from outside.

A process may be alive and do nothing: it waits in a collective for a rank that will not answer, or
for a batch that nobody makes. So what is watched is progress. The step loop says what it is at, and
says so again whenever it got further. Work that may take as long as it likes, because it waits for
a disk or for somebody who is watched elsewhere, is marked as such.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Pulse:
    """Marks of one process; written by the thread that trains, read by another.

    Attributes:
        step: optimizer steps that are done.
        taken: of these, steps that were done since :meth:`begin`.
        phase: what is being done now.
        marks: raised with all progress.
        patient: whether what is being done may take as long as it likes.
        spent: seconds since :meth:`begin` by phase, without those of the phase that goes on.
    """

    def __init__(self) -> None:
        self.step = 0
        self.taken = 0
        self._first: int | None = None
        self.phase = "start"
        self.marks = 0
        self.patient = True
        self.spent: dict[str, float] = {}
        self._since = time.monotonic()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Count what is spent from here on."""
        self.spent, self._since = {}, time.monotonic()
        self.taken, self._first = 0, None

    def _enter(self, phase: str, patient: bool) -> None:
        now = time.monotonic()
        self.spent[self.phase] = self.spent.get(self.phase, 0.0) + now - self._since
        self.phase, self.patient, self._since = phase, patient, now

    def mark(self, phase: str, step: int | None = None) -> None:
        """Say that training has got as far as ``phase`` of ``step``; called where it trains."""
        self._thread = threading.current_thread()
        self._enter(phase, patient=False)
        if step is not None:
            # A run that goes on begins with steps of the start before it.
            self._first = step if self._first is None else self._first
            self.step, self.taken = step, step - self._first
        self.marks += 1

    @contextmanager
    def waiting(self, phase: str) -> Iterator[None]:
        """What is done inside may take as long as it likes."""
        before = (self.phase, self.patient)
        self._enter(phase, patient=True)
        self.marks += 1
        try:
            yield
        finally:
            self._enter(*before)
            self.marks += 1

    def seconds(self) -> float:
        """Processor time of the thread that trains; it grows while there is something to compute.

        Other threads do not count: those that fetch data poll while they wait.
        """
        thread = self._thread
        # Of one that has ended, the C library would look for the clock where its memory was.
        if thread is None or thread.ident is None or not thread.is_alive():
            return 0.0
        try:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        except OSError:  # It has ended just now.
            return 0.0


#: Of this process.
pulse = Pulse()
