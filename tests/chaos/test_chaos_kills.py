"""SIGKILL at random instants and at every crash point of a commit: the same bits come out.

Compared are the SHA-256 of weights, optimizer and average after every single step, not only at the
end, and which samples every step was trained on.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chaos_run import STEPS, Chaos, Strike, digests, newest_step

#: Kills, of a tenth of which `make test` is made.
RANDOM_KILLS = 100
_MOMENTS: tuple[Any, ...] = ("before", "within", "after")


def kill_at_random(
    tmp_path: Path, digits: Path, unbroken: Any, *, world: int, kills: int, seed: int
) -> None:
    rng = random.Random(seed)
    done = number = 0
    while done < kills:
        chaos = Chaos(tmp_path / f"{number}", digits, f"cluster.workers={world}")
        number += 1
        began = time.monotonic()
        finished = False
        span = 0.5
        while not finished:
            begin = newest_step(chaos.run_dir)
            with chaos.ranks() as ranks:
                started = time.monotonic()
                codes = ranks.join(rng.uniform(0, span) if done < kills else 120)
                if codes is None:
                    # One rank alone or all of them at once.
                    ranks.signal(signal.SIGKILL, rng.choice([None, *range(world)]))
                    codes = ranks.join(60)
                    assert codes is not None
                    done += any(code == -signal.SIGKILL for code in codes)
                finished = codes == [0] * world
                # Instants are to be spread over the time that a start takes on this machine.
                span = max(span, 1.5 * (time.monotonic() - started)) if finished else span * 1.2
            chaos.books.close_start(begin)
            assert time.monotonic() - began < 300
        assert digests(chaos.run_dir) == unbroken[world]
        chaos.books.check(chaos.plan, until=STEPS)


@pytest.mark.parametrize("world", [1, 2])
def test_a_few_kills_at_random_instants(
    world: int, tmp_path: Path, digits: Path, unbroken: Any
) -> None:
    kill_at_random(tmp_path, digits, unbroken, world=world, kills=RANDOM_KILLS // 10, seed=world)


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_kills_at_random_instants(world: int, tmp_path: Path, digits: Path, unbroken: Any) -> None:
    kill_at_random(tmp_path, digits, unbroken, world=world, kills=RANDOM_KILLS, seed=10 + world)


def kill_at_crash_points(
    tmp_path: Path, digits: Path, unbroken: Any, *, world: int, every: int
) -> int:
    """Kill at each ``every``-th crash point of three commits; returns how many there are."""
    # The policy deletes commits too, so that its calls are among the crash points.
    settings = (f"cluster.workers={world}", "train.max_steps=3", "train.checkpoint.keep_last=2")
    counter = tmp_path / "calls"
    assert (
        Chaos(tmp_path / "whole", digits, *settings).run(Strike(None, count_in=str(counter)))
        == [0] * world
    )
    points = [(n, moment) for n in range(int(counter.read_text())) for moment in _MOMENTS]
    unreached = 0
    for number, moment in points[::every]:
        chaos = Chaos(tmp_path / f"{number}-{moment}", digits, *settings)
        codes = chaos.run(Strike(number, moment))
        if codes[0] == 0 and moment != "before":
            unreached += 1  # The read of a file that is not there has no middle.
            continue
        assert codes[0] == -signal.SIGKILL, (number, moment, codes)
        chaos.books.close_start(0)
        begin = newest_step(chaos.run_dir)
        assert chaos.run() == [0] * world, (number, moment)
        chaos.books.close_start(begin)
        found = digests(chaos.run_dir)
        assert found == {step: unbroken[world][step] for step in (2, 3)}, (number, moment)
        chaos.books.check(chaos.plan, until=3)
        left = [path.name for path in chaos.run_dir.rglob("*") if ".tmp-" in path.name]
        assert left == [], (number, moment)
    assert unreached <= len(points) / every / 20 + 1
    return len(points)


def test_kills_at_some_crash_points(tmp_path: Path, digits: Path, unbroken: Any) -> None:
    assert kill_at_crash_points(tmp_path, digits, unbroken, world=1, every=47) > 200


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_kills_at_every_crash_point(
    world: int, tmp_path: Path, digits: Path, unbroken: Any
) -> None:
    kill_at_crash_points(tmp_path, digits, unbroken, world=world, every=1)
