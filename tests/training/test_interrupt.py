"""Signals: asked to stop, told to, and told a second time."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from orchestrator.errors import PreemptedError
from orchestrator.training import interrupt
from orchestrator.training.interrupt import in_thread, stopping_at_once, stopping_politely


def test_the_first_signal_asks_and_ctrl_c_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with stopping_politely(lambda: asked.append(1)):
        # As `timeout` does, once for its child and once for its group.
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert asked == [1]
        monkeypatch.setattr(interrupt, "_ONE_WISH_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_outside_training_ends_with_75() -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked: list[int] = []

    def twice() -> None:
        with stopping_at_once():
            with stopping_politely(lambda: asked.append(1)):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    with pytest.raises(PreemptedError) as stopped:
        twice()
    assert asked == [1]
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_interrupt_what_the_first_one_ends() -> None:
    tidied: list[int] = []

    def end() -> None:
        with stopping_at_once():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                tidied.append(1)

    with pytest.raises(PreemptedError):
        end()
    assert tidied == [1]


def test_waiting_ends_once_it_has_become_useless() -> None:
    over = threading.Event()
    answers = iter([None, PreemptedError("the cluster is gone")])
    with pytest.raises(PreemptedError, match="gone"):
        in_thread(lambda: over.wait(60), given_up=lambda: next(answers))
    over.set()


def test_a_thread_gives_back_what_it_returns_or_raises() -> None:
    assert in_thread(lambda: 7) == 7
    with pytest.raises(ValueError, match="inside"):
        in_thread(lambda: (_ for _ in ()).throw(ValueError("inside")))
