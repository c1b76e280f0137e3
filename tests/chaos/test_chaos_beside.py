"""Runs that evaluate beside training, killed around their commits and scores: one score a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from test_chaos_kills import LOOKING

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs import processes
from orchestrator.runs.plan import Plan
from orchestrator.runs.processes import LocalRanks, RankTask
from orchestrator.storage.local import LocalStorage
from orchestrator.tracking.events import metric_history
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.session import run_rank
from tests.support.chaos_run import CHILDREN, CPU, HANGS, Strike, chaotic_rank, digests, small_plan
from tests.support.child_processes import start_server
from tests.support.evaluators import ThreadEvaluator, fickle_detector

#: 6 steps an epoch; only commits that wait for their scores outlive the next two.
SETTINGS = (
    "train.epochs=3",
    "train.checkpoint={every_steps: 2, keep_last: 2, keep_best: 1}",
)
DUE = [6, 12, 18]


def run_with_evaluator(job: TrainingJob, stream: LocalStream, **settings: Any) -> Outcome:
    """What a worker does, with an evaluator in a thread."""
    evaluator = None
    if job.evaluates_beside and stream.rank == 0:
        lost = os.environ.get("LOST_AT")
        evaluator = ThreadEvaluator(job, stream.plan, None if lost is None else int(lost))
    return run_rank(job, stream, evaluator=evaluator, **settings)


def evaluating_rank(task: RankTask, books: str, strike: Strike, lost_at: int | None) -> None:
    """Target of a rank; see :func:`chaotic_rank`."""
    if lost_at is not None:
        os.environ["LOST_AT"] = str(lost_at)
    with (
        mock.patch.object(processes, "run_rank", run_with_evaluator),
        mock.patch("tests.support.chaos_run.small_detector", fickle_detector),
    ):
        chaotic_rank(task, books, strike)


class Beside:
    """Starts of one run."""

    def __init__(self, folder: Path, data: Path, *, world: int, beside: bool = True) -> None:
        start_server()
        plan = small_plan(folder / "run", data, *SETTINGS, f"cluster.workers={world}")
        self.plan: Plan = replace(plan, job=replace(plan.job, evaluates_beside=beside))
        self.books = folder / "books"
        self.books.mkdir()

    def run(self, strike: Strike | None = None, *, lost_at: int | None = None) -> list[int]:
        arguments: Any = (str(self.books), strike or Strike(None), lost_at)
        with LocalRanks(
            self.plan,
            accelerator=CPU,
            target=evaluating_rank,
            arguments=arguments,
            context=CHILDREN,
        ) as ranks:
            codes = ranks.join(HANGS)
        assert codes is not None, "hangs"
        return codes

    def ends_in(self) -> tuple[Any, ...]:
        """Weights of the last commit, the best one, every score of the log, and detections."""
        store = CommitStore(LocalStorage(self.plan.job.path))
        best = store.best()
        assert best is not None
        log = self.plan.job.path / "events.jsonl"
        scores = {
            key: [(point.step, point.value) for point in metric_history(log, key)]
            for key in ("val/epoch", "val/AP", "val/AR100")
        }
        assert [step for step, _ in scores["val/epoch"]] == DUE
        results = (self.plan.job.path / "eval" / "coco_results.json").read_bytes()
        return digests(self.plan.job.path)[DUE[-1]], best.step, best.metrics, scores, results


def kill_at(tmp_path: Path, digits: Path, *, world: int, every: int) -> int:
    """Kill at each ``every``-th call that changes the disk; returns how many times."""
    loop = Beside(tmp_path / "loop", digits, world=world, beside=False)
    assert loop.run() == [0] * world
    expected = loop.ends_in()
    listed = tmp_path / "calls"
    whole = Beside(tmp_path / "whole", digits, world=world)
    assert whole.run(Strike(None, list_in=str(listed))) == [0] * world
    assert whole.ends_in() == expected
    calls = listed.read_text().splitlines()
    changing = [number for number, call in enumerate(calls) if not call.startswith(LOOKING)]
    points = points_of_scores(calls, changing, every)
    for number in points:
        case = f"{number}: {calls[number]}"
        run = Beside(tmp_path / f"{number}", digits, world=world)
        assert run.run(Strike(number))[0] == -signal.SIGKILL, case
        assert run.run() == [0] * world, case
        assert run.ends_in() == expected, case
    return len(points)


def points_of_scores(calls: Sequence[str], changing: Sequence[int], every: int) -> list[int]:
    """Each ``every``-th call, and the first and last of those that attach the scores of a step."""
    scores = [number for number in changing if "METRICS" in calls[number]]
    return sorted({*changing[::every], scores[0], scores[len(scores) // 2], scores[-1]})


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_some_crash_points(world: int, tmp_path: Path, digits: Path) -> None:
    assert kill_at(tmp_path, digits, world=world, every=61) >= 5


@pytest.mark.chaos
@pytest.mark.parametrize("world", [1, 2])
def test_killed_at_every_crash_point(world: int, tmp_path: Path, digits: Path) -> None:
    assert kill_at(tmp_path, digits, world=world, every=1) > 100


def test_all_ranks_score_what_a_lost_evaluator_has_not(tmp_path: Path, digits: Path) -> None:
    loop = Beside(tmp_path / "loop", digits, world=2, beside=False)
    assert loop.run() == [0, 0]
    run = Beside(tmp_path / "run", digits, world=2)
    assert run.run(lost_at=6) == [0, 0]
    assert run.ends_in() == loop.ends_in()
