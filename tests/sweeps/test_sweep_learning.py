"""Optuna through the journal: what a restart asks is what the unbroken sweep asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import StorageError
from orchestrator.sweeps.journal import Journal
from orchestrator.sweeps.learning import LearningSource
from orchestrator.sweeps.plan import Planner, Trial
from orchestrator.sweeps.report import combinations, front, ranking
from orchestrator.sweeps.sources import PlannedSource, Record
from tests.sweeps.sweep_cases import planner

pytest.importorskip("optuna")

SECTION = """
trials: 24
search: optuna
space:
  train.optimizer:
    choice: [{name: sgd}, {name: adamw}]
  train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-1]}
  train.optimizer.momentum: {uniform: [0.5, 0.95], when: {train.optimizer.name: sgd}}
"""


def end(trial: Trial) -> dict[str, Any]:
    """A score that is best at a rate of 0.01, with sgd."""
    optimizer = trial.resolved.experiment.train.optimizer
    score = 1.0 / (1.0 + abs(math.log10(optimizer.lr) + 2.0)) - 0.3 * (optimizer.name == "adamw")
    return {"state": "done", "result": {"metrics": {"AP": score, "AP50": score}, "steps": 9}}


def source(plan: Planner) -> tuple[LearningSource, Journal]:
    journal = Journal(plan.folder)
    return LearningSource(plan, journal, Record(plan, journal)), journal


def test_a_search_that_is_lost_anywhere_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    # The first ten are drawn at random, the others by what was learnt.
    whole, broken = (
        planner(tmp_path / name, SECTION, ["sweep.trials=14"]) for name in ("whole", "broken")
    )
    asked, _ = source(whole)
    expected = []
    while (trial := asked.next()) is not None:
        expected.append(trial.values)
        asked.ended(trial, end(trial))
    assert len(expected) == 14

    found = []
    while True:
        again, journal = source(broken)
        trial = again.next()
        if trial is None:
            break
        if len(found) % 5 == 1:
            # Killed while the trial ran: it comes first after the restart.
            journal.close()
            again, journal = source(broken)
            repeated = again.next()
            assert repeated is not None
            assert repeated.values == trial.values
        found.append(trial.values)
        again.ended(trial, end(trial))
        journal.close()
    assert found == expected


def test_the_search_learns(tmp_path: Path) -> None:
    plan = planner(tmp_path, SECTION)
    asked, _ = source(plan)
    scores = []
    while (trial := asked.next()) is not None:
        ended = end(trial)
        scores.append(ended["result"]["metrics"]["AP"])
        asked.ended(trial, ended)
    # The first ten are random; what follows knows where it is good.
    assert sum(scores[14:]) / 10 > sum(scores[:10]) / 10 + 0.1


def test_trials_that_failed_and_then_did_not_are_learnt_from(tmp_path: Path) -> None:
    plan = planner(tmp_path, SECTION)
    asked, journal = source(plan)
    for _ in range(10):
        trial = asked.next()
        assert trial is not None
        asked.ended(trial, {"state": "failed", "reason": "the disk was full"})
    journal.close()

    asked, journal = source(plan)
    scores = []
    for _ in range(10):
        trial = asked.next()
        assert trial is not None
        ended = end(trial)
        scores.append(ended["result"]["metrics"]["AP"])
        asked.ended(trial, ended)
    expected = asked.next()
    journal.close()
    assert expected is not None

    # A restart is told of both ends, too, and asks the same.
    asked, _ = source(plan)
    assert [one.value for one in asked._study.trials if one.value is not None] == scores
    again = asked.next()
    assert again is not None
    assert (again.number, again.values) == (10, expected.values)


FINITE = """
trials: 18
search: {search}
seed: {seed}
space:
  train.optimizer.momentum: {{choice: [0.0, 0.5, 0.9]}}
  train.schedule.warmup_epochs: {{uniform: [0, 2], step: 1}}
  train.batch_size: {{choice: [2, 4]}}
"""


@pytest.mark.parametrize("under_way", [1, 3])
@pytest.mark.parametrize("seed", range(6))
def test_a_finite_space_is_tried_to_its_last_combination(
    tmp_path: Path, seed: int, under_way: int
) -> None:
    plan = planner(tmp_path, FINITE.format(search="optuna", seed=seed))
    plan.check()
    asked, journal = source(plan)
    running: list[Trial] = []
    found = set()
    while True:
        while len(running) < under_way and (trial := asked.next()) is not None:
            running.append(trial)
            found.add(tuple(trial.values.items()))
        if not running:
            break
        ending = running.pop(0)
        asked.ended(ending, end(ending) if ending.number % 5 else {"state": "failed", "reason": ""})
    assert len(found) == 18
    # A restart asks the same again, the last ones of the queue too.
    journal.close()
    again, _ = source(plan)
    assert [trial.number % 5 for trial in again._unfinished] == [0] * 4


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("search", ["random", "grid"])
def test_searches_that_do_not_learn_try_all_of_it_too(
    tmp_path: Path, search: str, seed: int
) -> None:
    section = FINITE.format(search=search, seed=seed)
    if search == "grid":
        section = section.replace("trials: 18\n", "")
    plan = planner(tmp_path, section)
    assert len({trial.digest for trial in plan.planned()}) == 18


def test_answers_that_changed_are_noticed(tmp_path: Path) -> None:
    plan = planner(tmp_path, SECTION)
    asked, journal = source(plan)
    trial = asked.next()
    assert trial is not None
    journal.close()
    other = planner(tmp_path, "seed: 99\n" + SECTION)
    with pytest.raises(StorageError, match=r"Optuna suggests .* for trial-000"):
        source(other)


def test_several_objectives_end_in_a_front(tmp_path: Path) -> None:
    section = """
trials: 8
search: optuna
objectives: [model/parameters]
space:
  detector.width: {choice: [0.1, 0.2, 0.4]}
  train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-1]}
"""
    plan = planner(tmp_path, section)
    journal = Journal(plan.folder)
    record = Record(
        plan, journal, parameters=lambda t: round(1000 * t.resolved.experiment.detector.width)
    )
    asked = LearningSource(plan, journal, record)
    points = []
    while (trial := asked.next()) is not None:
        ended = end(trial)
        asked.ended(trial, ended)
        width = trial.resolved.experiment.detector.width  # type: ignore[union-attr]
        points.append((ended["result"]["metrics"]["AP"], -width, trial.name))
    expected = {
        name
        for score, size, name in points
        if not any((s >= score and w >= size) and (s, w) != (score, size) for s, w, _ in points)
    }
    assert {row.trial.name for row in front(record.ordered(), plan.sweep)} == expected


def test_trials_that_ended_are_not_given_out_again(tmp_path: Path) -> None:
    section = "search: grid\nseeds: 2\nspace:\n  train.optimizer.lr: {choice: [0.01, 0.1]}"
    plan = planner(tmp_path, section)
    journal = Journal(plan.folder)
    record = Record(plan, journal)
    first = PlannedSource(record, plan.planned())
    states = ["done", "failed", "stopped"]
    for state in states:
        trial = first.next()
        assert trial is not None
        ending = end(trial) if state != "failed" else {"state": "failed", "reason": "NaN"}
        record.ended(trial, {**ending, "state": state})
    again = Record(plan, Journal(plan.folder))
    left = PlannedSource(again, plan.planned())
    assert [left.next(), left.next(), left.next()] == [plan.planned()[1], plan.planned()[3], None]
    # One that was given up never ranks before one that ended.
    assert [row.trial.number for row in ranking(again.ordered(), plan.sweep)] == [0, 2]
    means = combinations(again.ordered(), plan.sweep)
    assert [(entry["runs"], entry["min"]) for entry in means] == [(1, 1.0)]
