"""A run that loses a part every five minutes still spends its time on steps, and says how much."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orchestrator.tracking.events import METRICS, Event, read_events
from orchestrator.tracking.goodput import ATTEMPT
from tests.support.chaos_cluster import (
    Run,
    fake_cluster,
    kill_controller,
    kill_driver,
    kill_node,
    kill_worker,
    make_folder,
)

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

#: How long the run lasts; an hour is what counts.
MINUTES = int(os.environ.get("GOODPUT_MINUTES", "11"))
BETWEEN_KILLS = 300.0
#: A kill costs up to 25 s where other work is done as well, a start as much.
SHARE = 0.9
SETTINGS = (
    "train.epochs=10000",
    "train.batch_size=16",
    "train.evaluate_every_epochs=10000",
    "train.checkpoint={every_steps: 10, keep_last: 3}",
)


def seconds_of_kept_steps(events: list[Event]) -> float:
    """From the start of each attempt's training to the last step of it that counts.

    Read off when steps were logged, not off the notes that the account is made of.
    """
    starts = [place for place, event in enumerate(events) if event.kind == ATTEMPT]
    ends = [*starts[1:], len(events)]
    attempts = [events[start:end] for start, end in zip(starts, ends, strict=True)]
    goes_on_from = [
        next((e.step for e in attempt if e.kind == "resume"), 0) for attempt in attempts[1:]
    ]
    kept_until = [*goes_on_from, max(event.step for event in events)]
    seconds = 0.0
    for attempt, last in zip(attempts, kept_until, strict=True):
        kept = [e.time_ms for e in attempt if e.kind == METRICS and e.step <= last]
        if kept:
            seconds += (kept[-1] - attempt[0].time_ms) / 1000
    return seconds


def test_a_kill_every_five_minutes(tmp_path: Path) -> None:
    make_folder(tmp_path, train=320)
    strikes = [kill_worker, kill_controller, kill_driver, kill_node]
    with fake_cluster(1, [2, 2]) as cluster:
        run = Run(tmp_path, cluster, "goodput")
        began = time.monotonic()
        run.start(*SETTINGS)
        for number in range(max(1, int(MINUTES * 60 / BETWEEN_KILLS) - 1)):
            due = began + (number + 1) * BETWEEN_KILLS
            run.wait(lambda due=due: time.monotonic() >= due, 2 * BETWEEN_KILLS)
            starts = len(run.resumes())
            strikes[number % len(strikes)](run, number)
            run.wait(lambda starts=starts: len(run.resumes()) > starts)
        end = began + 60 * MINUTES
        run.wait(lambda: time.monotonic() >= end, 2 * BETWEEN_KILLS)
        assert run.driver is not None
        run.driver.send_signal(signal.SIGTERM)
        result = run.finish(75)
        seconds = time.monotonic() - began
    account = result["goodput"]
    print(f"{seconds:.0f} s: {account}")
    assert account["share"] >= SHARE
    # The whole time is accounted for, but for a driver that is killed and the end of the last.
    assert account["wall"] == pytest.approx(seconds, rel=0.03)
    assert account["wall"] == pytest.approx(
        account["steps"] + sum(account["losses"].values()), rel=0.01
    )
    # What was not lost to starts and failures is the time of the steps that the log has.
    lost = sum(account["losses"].get(cause, 0.0) for cause in ("start", "failure"))
    logged = seconds_of_kept_steps(list(read_events(run.log)))
    print(f"by the times of logged steps {logged:.0f} s")
    assert account["wall"] - lost == pytest.approx(logged, rel=0.02)
