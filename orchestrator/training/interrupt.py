"""Ending a run from outside: the first signal asks it to stop, the second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

#: Set in a process that trains once it was asked to stop: the step under way is finished and
#: committed, on all ranks, and training ends.
asked_to_stop = threading.Event()


def stop_on_sigterm() -> None:
    """Let SIGTERM set :data:`asked_to_stop` from now on; called in the main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: asked_to_stop.set())


@contextmanager
def stopping_politely(ask: Callable[[], None]) -> Iterator[None]:
    """Call ``ask`` on the first SIGINT or SIGTERM; raise KeyboardInterrupt on the second.

    Outside the main thread, where Python cannot handle signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        ask()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(function: Callable[[], T]) -> T:
    """Run ``function`` in a thread and wait, so that this thread stays free to handle signals.

    Ray Train, called in the main thread, would install a SIGINT handler of its own that aborts the
    workers in the middle of a step.
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
    if errors:
        raise errors[0]
    return results[0]
