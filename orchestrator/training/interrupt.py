"""Ending a run from outside: the first signal asks it to stop, a second Ctrl-C insists.

Who ends many processes says so more than once: ``timeout`` signals its child and then its whole
group, a queue the job and each of its steps, and again when its patience is over. So SIGTERM never
insists, and what follows a signal at once is part of it; whoever means it sends SIGKILL.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from orchestrator.errors import PreemptedError

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
#: Signals within so many seconds are one.
_ONE_WISH_SECONDS = 1.0

#: Set in a process that trains once it was asked to stop: the step under way is finished and
#: committed, on all ranks, and training ends.
asked_to_stop = threading.Event()


def stop_on_sigterm() -> None:
    """Let SIGTERM set :data:`asked_to_stop` from now on; called in the main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.set())


@contextmanager
def stopping_politely(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask`` on the first SIGINT or SIGTERM; raise KeyboardInterrupt on a later SIGINT.

    Outside the main thread, where Python cannot handle signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked is None:
            asked = time.monotonic()
            ask()
        elif number == signal.SIGINT and time.monotonic() - asked > _ONE_WISH_SECONDS:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Let SIGTERM raise :class:`PreemptedError` inside, as Ctrl-C raises an exception of its own.

    For all that comes before and after training, where no step has to be finished. Outside the main
    thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    raised = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised
        if raised:  # What it has started is being ended.
            return
        raised = True
        raise PreemptedError(
            "asked to stop while nothing was being trained. Next: run the same command again"
        )

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def in_thread(
    function: Callable[[], T], given_up: Callable[[], BaseException | None] = lambda: None
) -> T:
    """Run ``function`` in a thread and wait, so that this thread stays free to handle signals.

    Ray Train, called in the main thread, would install a SIGINT handler of its own that aborts the
    workers in the middle of a step.

    Args:
        function: what to run.
        given_up: asked now and then whether waiting has become useless, and for the error that is
            then raised; the thread is left to itself.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, name="training", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        error = given_up()
        if error is not None:
            raise error
    if errors:
        raise errors[0]
    return results[0]
