"""A run that ends early, killed at the crash points of its commits: the same end every time."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from test_chaos_kills import LOOKING

from orchestrator.tracking.events import read_events
from tests.support.chaos_run import Chaos, Strike, digests

#: No rise of AP by more than 0.9 is possible, so the second evaluation, after step 12 of 36, ends
#: the run.
SETTINGS = (
    "train.epochs=6",
    "train.checkpoint.every_steps=null",
    "train.early_stopping={patience: 1, min_delta: 0.9}",
)


def ends(run_dir: Path) -> list[int]:
    """Steps at which its starts found that it was over."""
    events = read_events(run_dir / "events.jsonl")
    return [event.step for event in events if event.kind == "early_stopping"]


def kill_before_the_end(tmp_path: Path, digits: Path, *, world: int, every: int) -> int:
    settings = (*SETTINGS, f"cluster.workers={world}")
    listed = tmp_path / "calls"
    whole = Chaos(tmp_path / "whole", digits, *settings)
    assert whole.run(Strike(None, list_in=str(listed))) == [0] * world
    expected = digests(whole.run_dir)
    assert sorted(expected) == [6, 12]
    assert ends(whole.run_dir) == [12]
    calls = listed.read_text().splitlines()
    changing = [number for number, call in enumerate(calls) if not call.startswith(LOOKING)]
    points = changing[::-every]  # From the metrics of the last evaluation backwards.
    for number in points:
        case = f"{number}: {calls[number]}"
        chaos = Chaos(tmp_path / f"{number}", digits, *settings)
        assert chaos.run(Strike(number))[0] == -signal.SIGKILL, case
        assert chaos.run() == [0] * world, case
        assert digests(chaos.run_dir) == expected, case
        assert set(ends(chaos.run_dir)) == {12}, case
    return len(points)


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_some_crash_points(world: int, tmp_path: Path, digits: Path) -> None:
    assert kill_before_the_end(tmp_path, digits, world=world, every=31) >= 3


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_every_crash_point(world: int, tmp_path: Path, digits: Path) -> None:
    assert kill_before_the_end(tmp_path, digits, world=world, every=1) > 90
