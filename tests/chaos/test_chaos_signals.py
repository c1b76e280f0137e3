"""SIGTERM with grace: the step under way is finished, committed and gone on from."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.processes import LocalRanks
from tests.support.chaos_run import STEPS, Chaos, digests, newest_step

#: Of which `make test` does a tenth.
TERMS = 50


def first_step_is_taken(chaos: Chaos, ranks: LocalRanks, known: set[Path]) -> list[int] | None:
    """Wait until every rank of the present start trains, or all have ended with nothing to do."""
    ends = time.monotonic() + 60.0
    codes = None
    while codes is None:
        books = set(chaos.books.folder.iterdir()) - known
        if sum(book.stat().st_size > 0 for book in books) == len(ranks.processes):
            break
        assert time.monotonic() < ends, "no step was taken"
        codes = ranks.join(0.002)
    return codes


def terminate(tmp_path: Path, digits: Path, unbroken: Any, *, times: int) -> None:
    """Ask runs to stop ``times`` times, at random instants of their training."""
    rng = random.Random(times)
    asked = number = 0
    while asked < times:
        world = 1 + number % 2
        chaos = Chaos(tmp_path / f"{number}", digits, f"cluster.workers={world}")
        number += 1
        codes: list[int] | None = None
        while codes != [0] * world:
            begin = newest_step(chaos.run_dir)
            known = set(chaos.books.folder.iterdir())
            with chaos.ranks() as ranks:
                codes = first_step_is_taken(chaos, ranks, known)
                codes = codes or ranks.join(rng.uniform(0, 0.5))
                if codes is None and asked < times:
                    ranks.signal(signal.SIGTERM, rng.randrange(world))
                codes = codes or ranks.join(120)
                assert codes in ([0] * world, [75] * world), codes
            chaos.books.close_start(begin)
            if codes == [75] * world:
                asked += 1
                books = chaos.books.starts[-1][1]
                # What was begun was finished, and what was finished was committed.
                assert {len(b.read_text().splitlines()) for b in books} == {
                    newest_step(chaos.run_dir) - begin
                }
        assert digests(chaos.run_dir) == unbroken[world]
        assert chaos.books.check(chaos.plan, until=STEPS) <= 0


def test_a_few_sigterms(tmp_path: Path, digits: Path, unbroken: Any) -> None:
    terminate(tmp_path, digits, unbroken, times=TERMS // 10)


@pytest.mark.chaos
def test_sigterms(tmp_path: Path, digits: Path, unbroken: Any) -> None:
    terminate(tmp_path, digits, unbroken, times=TERMS)
