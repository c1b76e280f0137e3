"""The account of a run's time, against logs whose seconds are added up by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.tracking.events import EventLog, read_events
from orchestrator.tracking.goodput import (
    ACCOUNT,
    ATTEMPT,
    account_text,
    attempt_text,
    goodput,
)


class Log:
    """An event log whose clock is set by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0
        self._log = EventLog(path, clock=lambda: self.now)

    def begins(self, now: float, *, driver: float, step: int = 0) -> None:
        self.now = now
        self._log.note(ATTEMPT, attempt_text(driver), step=0)
        self._log.note("resume" if step else "start", "", step=step)

    def commits(self, now: float, done: int, **spent: float) -> None:
        self.now = now
        self._log.note(ACCOUNT, account_text(spent), step=done)

    def logs(self, now: float, step: int) -> None:
        self.now = now
        self._log.metrics({"train/loss": 1.0}, step=step)

    def account(self):
        found = goodput(read_events(self.path))
        assert found is not None
        assert found.wall == pytest.approx(found.steps + sum(found.losses.values()), abs=0.2)
        return found


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "events.jsonl")


def test_a_run_without_trouble(log):
    log.begins(1010, driver=1000)
    log.commits(1110, 10, step=80, data=5, evaluation=10, checkpoint=2)
    found = log.account()
    assert (found.wall, found.steps) == (110, 80)
    assert found.share == pytest.approx(80 / 110)
    # 3 of the 100 seconds since rank 0 began are in no phase.
    assert found.losses == {"start": 10, "data": 5, "evaluation": 10, "checkpoint": 2, "other": 3}


def test_what_a_failure_undid_is_part_of_what_it_cost(log):
    log.begins(1010, driver=1000)
    log.commits(1060, 5, step=50)
    # Commit 10 was begun, and never became whole: the run went on from 5.
    log.commits(1110, 10, step=100)
    log.logs(1115, 11)
    log.begins(1140, driver=1000, step=5)
    log.commits(1240, 15, step=100)
    found = log.account()
    assert found.wall == 240
    assert found.steps == 150
    # From the last commit that counted to where the next attempt began.
    assert found.losses == {"start": 10, "failure": 80}


def test_time_between_two_commands_is_nobodys(log):
    log.begins(1010, driver=1000)
    log.commits(1060, 5, step=50)
    log.logs(1065, 6)  # Then the machine was lost.
    log.begins(9020, driver=9000, step=5)
    log.commits(9070, 10, step=50)
    found = log.account()
    assert found.wall == 65 + 70
    assert found.steps == 100
    assert found.losses == {"start": 30, "failure": 5}


def test_a_failure_before_the_first_commit_leaves_nothing(log):
    log.begins(1010, driver=1000)
    log.logs(1030, 4)
    log.begins(1050, driver=1000)
    log.commits(1060, 2, step=9, data=1)
    found = log.account()
    assert (found.wall, found.steps) == (60, 9)
    assert found.losses == {"start": 10, "failure": 40, "data": 1}


def test_a_clock_that_is_put_back_takes_no_time_and_gives_none(log):
    log.begins(7210, driver=7200)  # Two hours ahead, until the time server answers.
    log.logs(7220, 1)
    log.logs(30, 2)
    log.commits(110, 10, step=85)
    log.logs(112, 11)
    log.begins(130, driver=7200, step=10)
    log.commits(180, 15, step=50)
    found = log.account()
    # 10 s of start, 10 s and 80 s up to the commit, 20 s of failure and 50 s after it; what passed
    # between the last line by the old clock and the first by the new one is not known.
    assert (found.wall, found.steps) == (170, 135)
    assert found.losses == {"start": 10, "other": 5, "failure": 20}


def test_a_driver_whose_clock_is_ahead_of_the_worker_is_one_driver(log):
    log.begins(1010, driver=1020)
    log.commits(1060, 5, step=50)
    log.begins(1070, driver=1020, step=5)
    log.commits(1120, 10, step=50)
    found = log.account()
    assert (found.wall, found.steps) == (110, 100)
    assert found.losses == {"failure": 10}


def test_logs_without_such_notes_have_no_account(log):
    log.logs(1000, 1)
    assert goodput(read_events(log.path)) is None


def test_damaged_notes_count_as_nothing(log):
    log.now = 1000
    log._log.note(ATTEMPT, "[]", step=0)
    log.now = 1010
    log._log.note(ACCOUNT, "{", step=3)
    found = log.account()
    assert (found.wall, found.steps) == (10, 0)
