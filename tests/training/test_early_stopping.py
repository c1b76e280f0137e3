"""A run that no longer gets better ends by itself, after the same step however it got there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config.schema import EarlyStoppingConfig
from orchestrator.errors import ConfigError
from orchestrator.evaluation.coco import METRICS
from orchestrator.runs.report import result_of, run_card_of
from orchestrator.runs.tracking import ending_tags
from orchestrator.storage.run_files import STOP
from orchestrator.tracking.events import metric_history, read_events
from orchestrator.training import session
from orchestrator.training.early_stopping import EarlyStopping
from orchestrator.training.session import open_store
from orchestrator.training.validation import Scored, Validation
from tests.support.chaos_run import small_detector, small_plan
from tests.support.local_runs import StoppingStream, train

#: 6 steps an epoch.
SETTINGS = ("train.epochs=6", "train.checkpoint.every_steps=null")
STOPS = "train.early_stopping={patience: 2, min_delta: 0.02}"
#: AP of epochs 1, 2, ...: of those only 0.1 and 0.2 lie more than 0.02 above the best before.
SCORES = (0.1, 0.12, 0.2, 0.219, 0.22, 0.5)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations that give ``SCORES``, by the epoch they are made after."""
    monkeypatch.setattr(session, "build_detector", small_detector)
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    real = Validation._record

    def record(self: Validation, step: int, scored: Scored | None, *, committed: bool) -> None:
        assert scored is not None
        score = SCORES[step // self._job.schedule.steps_per_epoch - 1]
        numbers = dict.fromkeys(METRICS, score)
        scores: Any = SimpleNamespace(numbers=numbers, per_class={}, classes=())
        real(self, step, Scored(scored.found, scores), committed=committed)

    monkeypatch.setattr(Validation, "_record", record)


# The rule


def watch(values: list[float], **config: Any) -> list[int]:
    """Evaluations after which the run would be over."""
    early = EarlyStopping(EarlyStoppingConfig(**config), steps_per_epoch=10)
    over = []
    for number, value in enumerate(values, start=1):
        early.count({"AP50": value, "AP": 0.0}, step=10 * number)
        # What a commit holds is all there is to know.
        early.load(json.loads(json.dumps(early.to_json())))
        if early.ending is not None:
            over.append(number)
    return over


def test_evaluations_without_a_rise_are_counted_in_a_row() -> None:
    metric = "val/AP50"
    assert watch([0.0, 0.0, 0.0], metric=metric, patience=2) == [3]
    assert watch([0.3, 0.2, 0.3, 0.1], metric=metric, patience=3) == [4]
    assert watch([0.1, 0.1, 0.2, 0.2, 0.2], metric=metric, patience=2) == [5]
    assert watch([0.1, 0.2, 0.3], metric=metric, patience=1) == []
    # Half of a rise that is too small, twice, is one that is not.
    assert watch([0.5, 0.625, 0.75], metric=metric, patience=2, min_delta=0.125) == []
    assert watch([0.5, 0.625, 0.625], metric=metric, patience=2, min_delta=0.125) == [3]
    assert watch([0.5, 0.75, 0.875], metric=metric, patience=1, min_delta=0.125) == [3]


def test_an_evaluation_is_counted_once() -> None:
    early = EarlyStopping(EarlyStoppingConfig(patience=2), steps_per_epoch=10)
    for _ in range(5):
        early.count({"AP": 0.25}, step=10)
    for _ in range(5):
        early.count({"AP": 0.25}, step=20)
    assert early.ending is None
    early.count({"AP": 0.125}, step=35)
    assert early.ending == {
        "step": 35,
        "epoch": 3.5,
        "metric": "val/AP",
        "best": 0.25,
        "best_step": 10,
        "reason": "ended after step 35 (epoch 3.5): val/AP has not risen in the last 2 evaluations "
        "above 0.2500 of step 10 (epoch 1)",
    }


# The experiment file


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.early_stopping={patience: 0}",), "patience: found 0, allowed is a whole number"),
        (("train.early_stopping={}",), "patience: required key is missing"),
        (
            ("train.early_stopping={patience: 3, metric: AP}",),
            "metric: found 'AP', allowed is",
        ),
        (("train.early_stopping={patience: 3, min_delta: -1}",), "min_delta: found -1"),
        (
            ("train.early_stopping={patience: 5}",),
            "is 5 and could never be used up: with train.epochs 6 and train.evaluate_every_epochs "
            "1 there are 5 evaluations before the last epoch, and the first is what the others are "
            "compared with; at most 4 would be",
        ),
        (
            ("train.early_stopping={patience: 1}", "train.evaluate_every_epochs=6"),
            "there are 0 evaluations before the last epoch",
        ),
        (
            (
                "train.early_stopping={patience: 1}",
                "sweep={metric: val/AP, trials: 4, scheduler: pbt, "
                "space: {train.optimizer.lr: {loguniform: [0.001, 0.1]}}}",
            ),
            "clones members of the same age, which train.early_stopping would keep some from",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(
    overrides: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        small_plan(tmp_path / "run", tmp_path, *SETTINGS, *overrides)
    assert message in str(refused.value)


def test_a_metric_that_the_data_never_has_is_refused(tmp_path: Path, digits: Path) -> None:
    """The pictures of digits are 64 pixels wide, and COCO's large boxes begin at 96 x 96."""
    with pytest.raises(ConfigError, match=r"val/APl is not defined on data\.val.*val/AP, val/AP50"):
        small_plan(
            tmp_path / "run",
            digits,
            *SETTINGS,
            "train.early_stopping={patience: 1, metric: val/APl}",
        )


# The run


def test_a_run_ends_after_the_evaluation_that_is_one_too_many(
    tmp_path: Path, digits: Path, scripted: None
) -> None:
    plan = small_plan(tmp_path / "run", digits, *SETTINGS, STOPS)
    outcome = train(plan)
    reason = (
        "ended after step 30 (epoch 5): val/AP has not risen by more than 0.02 in the last 2 "
        "evaluations above 0.2000 of step 18 (epoch 3)"
    )
    assert (outcome.state, outcome.steps, outcome.metrics["AP"]) == ("done", 30, 0.22)
    assert outcome.early_stopping is not None
    assert outcome.early_stopping["reason"] == reason
    # The schedule is that of the whole run: nothing but the end is different.
    whole = train(small_plan(tmp_path / "whole", digits, *SETTINGS, "train.checkpoint.keep_last=9"))
    assert (whole.steps, whole.early_stopping) == (36, None)
    ends = [
        next(c for c in open_store(p.job).commits() if c.step == 30).manifest.files
        for p in (plan, small_plan(tmp_path / "whole", digits, *SETTINGS))
    ]
    assert ends[0]["weights.safetensors"] == ends[1]["weights.safetensors"]
    # Where it is said.
    notes = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "early_stopping"]
    assert [(note.step, note.text) for note in notes] == [(30, reason)]
    result = result_of(plan.job, outcome, None, 1.0)
    assert (result["state"], result["early_stopping"]) == ("done", outcome.early_stopping)
    card = run_card_of(plan.job, outcome, status="FINISHED", accelerator="cpu").render()
    assert f"| early stopping | {reason} |" in card
    assert ending_tags(outcome) == {"ended": "done", "early_stopping": reason}
    assert ending_tags(whole) == {"ended": "done"}


def test_started_again_after_its_end_it_stays_where_it_is(
    tmp_path: Path, digits: Path, scripted: None
) -> None:
    plan = small_plan(tmp_path / "run", digits, *SETTINGS, STOPS)
    first = train(plan)
    again = train(plan)
    assert again.resumed_from == 30
    for field in ("state", "steps", "metrics", "best_metrics", "weights_sha256", "early_stopping"):
        assert getattr(again, field) == getattr(first, field), field


@pytest.mark.parametrize("at", [5, 13, 23, 29])
def test_stopped_and_started_again_it_ends_after_the_same_step(
    at: int, tmp_path: Path, digits: Path, scripted: None
) -> None:
    """In the middle of an epoch and between a commit and its evaluation."""
    whole = train(small_plan(tmp_path / "whole", digits, *SETTINGS, STOPS))
    plan = small_plan(tmp_path / "run", digits, *SETTINGS, STOPS)
    stopped = train(plan, StoppingStream(plan, at))
    assert (stopped.state, stopped.steps) == ("preempted", at + 1)
    (plan.job.path / STOP).unlink()
    ended = train(plan)
    assert ended.resumed_from == at + 1
    assert (ended.steps, ended.weights_sha256) == (30, whole.weights_sha256)
    assert ended.early_stopping == whole.early_stopping
    values = metric_history(plan.job.path / "events.jsonl", "val/AP")
    assert [point.value for point in values] == list(SCORES[:5])


def test_a_run_cut_short_and_lengthened_again_ends_where_the_whole_one_does(
    tmp_path: Path, digits: Path, scripted: None
) -> None:
    """The evaluation at the end of the short one is none that the whole one has."""
    short = small_plan(tmp_path / "run", digits, *SETTINGS, STOPS, "train.max_steps=20")
    assert train(short).steps == 20
    ended = train(small_plan(tmp_path / "run", digits, *SETTINGS, STOPS))
    assert (ended.resumed_from, ended.steps) == (20, 30)


def test_evaluations_have_commits_although_few_are_asked_for(
    tmp_path: Path, digits: Path, scripted: None
) -> None:
    plan = small_plan(tmp_path / "run", digits, *SETTINGS, STOPS, "train.checkpoint.every_epochs=4")
    outcome = train(plan)
    commits = open_store(plan.job).commits()
    assert [commit.step for commit in commits] == [6, 12, 18, 24, 30]
    assert outcome.best_checkpoint == commits[-1].path
