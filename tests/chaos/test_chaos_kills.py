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

from tests.support.chaos_run import HANGS, STEPS, Chaos, Strike, digests, finished_step, newest_step
from tests.support.faulty_storage import Moment

#: Kills, of a tenth of which `make test` is made.
RANDOM_KILLS = 100
#: Calls that change nothing.
LOOKING = ("list", "read")


def detections(run_dir: Path) -> bytes:
    """Those of the last evaluation, which averages of all ranks' statistics could change."""
    return (run_dir / "eval" / "coco_results.json").read_bytes()


def kill_at_random(
    tmp_path: Path, digits: Path, whole: dict[int, Path], *, world: int, kills: int, seed: int
) -> None:
    rng = random.Random(seed)
    done = number = 0
    while done < kills:
        chaos = Chaos(tmp_path / f"{number}", digits, f"cluster.workers={world}")
        number += 1
        finished = False
        span = 0.5
        while not finished:
            begin = newest_step(chaos.run_dir)
            assert finished_step(chaos.run_dir) <= begin + 1
            with chaos.ranks() as ranks:
                started = time.monotonic()
                codes = ranks.join(rng.uniform(0, span) if done < kills else HANGS)
                if codes is None:
                    # One rank alone or all of them at once.
                    ranks.signal(signal.SIGKILL, rng.choice([None, *range(world)]))
                    codes = ranks.join(HANGS)
                    assert codes is not None
                    done += any(code == -signal.SIGKILL for code in codes)
                finished = codes == [0] * world
                # Instants are to be spread over the time that a start takes on this machine.
                span = max(span, 1.5 * (time.monotonic() - started)) if finished else span * 1.2
            chaos.books.close_start(begin)
        assert digests(chaos.run_dir) == digests(whole[world])
        assert detections(chaos.run_dir) == detections(whole[world])
        chaos.books.check(chaos.plan, until=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_a_few_kills_at_random_instants(
    world: int, tmp_path: Path, digits: Path, whole: dict[int, Path]
) -> None:
    kill_at_random(tmp_path, digits, whole, world=world, kills=RANDOM_KILLS // 10, seed=world)


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_kills_at_random_instants(
    world: int, tmp_path: Path, digits: Path, whole: dict[int, Path]
) -> None:
    kill_at_random(tmp_path, digits, whole, world=world, kills=RANDOM_KILLS, seed=10 + world)


def kill_at_crash_points(
    tmp_path: Path, digits: Path, unbroken: Any, *, world: int, every: int
) -> int:
    """Kill at each ``every``-th crash point of three commits; returns how many there are.

    They are the instants before and within each call that changes the disk, and that after the
    last one: between two such calls nothing is different to whoever starts again.
    """
    # The policy deletes commits too, so that its calls are among the crash points.
    settings = (f"cluster.workers={world}", "train.max_steps=3", "train.checkpoint.keep_last=2")
    listed = tmp_path / "calls"
    assert (
        Chaos(tmp_path / "whole", digits, *settings).run(Strike(None, list_in=str(listed)))
        == [0] * world
    )
    calls = listed.read_text().splitlines()
    changing = [number for number, call in enumerate(calls) if not call.startswith(LOOKING)]
    points: list[tuple[int, Moment]] = [(number, "before") for number in changing]
    points += [(number, "within") for number in changing if calls[number].startswith("write")]
    points.append((changing[-1], "after"))
    for number, moment in sorted(points)[::every]:
        case = f"{moment} {number}: {calls[number]}"
        chaos = Chaos(tmp_path / f"{number}-{moment}", digits, *settings)
        codes = chaos.run(Strike(number, moment))
        assert codes[0] == -signal.SIGKILL, (case, codes)
        chaos.books.close_start(0)
        begin = newest_step(chaos.run_dir)
        assert finished_step(chaos.run_dir) <= begin + 1, case
        assert chaos.run() == [0] * world, case
        chaos.books.close_start(begin)
        assert digests(chaos.run_dir) == {step: unbroken[world][step] for step in (2, 3)}, case
        chaos.books.check(chaos.plan, until=3)
        # A score that was written beside the commit is swept by the driver, of which there is none.
        left = [path for path in chaos.run_dir.rglob("*") if ".tmp-" in path.name]
        assert [path for path in left if path.parent.name != "eval"] == [], case
    return len(points)


def test_kills_at_some_crash_points(tmp_path: Path, digits: Path, unbroken: Any) -> None:
    assert kill_at_crash_points(tmp_path, digits, unbroken, world=1, every=17) > 150


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_kills_at_every_crash_point(
    world: int, tmp_path: Path, digits: Path, unbroken: Any
) -> None:
    print(kill_at_crash_points(tmp_path, digits, unbroken, world=world, every=1), "crash points")
