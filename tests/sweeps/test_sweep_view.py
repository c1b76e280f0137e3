"""What the live view says about the time left, worked out by hand, and how a sweep ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_cases import planner

from orchestrator.errors import OrchestratorError
from orchestrator.sweeps.driver import refuse_empty
from orchestrator.sweeps.plan import Planner
from orchestrator.sweeps.report import Row
from orchestrator.sweeps.view import View, _Curve
from orchestrator.tracking.events import EventLog

SPACE = "space:\n  train.optimizer.lr: {loguniform: [1.0e-3, 1.0e-1]}\n"
ALL = f"trials: 4\n{SPACE}"
#: Judged after 1 and 3 of 9 epochs, so a trial takes 1 + 2/3 + 6/9 = 7/3 epochs on average.
HALVED = f"trials: 3\nscheduler: asha\nasha: {{reduction_factor: 3}}\n{SPACE}"


class Scene:
    """A sweep as the view sees it."""

    def __init__(self, plan: Planner) -> None:
        self.plan = plan
        self.states = {trial.name: "waiting" for trial in plan.planned()}
        self.now = 0.0

    def look(self) -> View:
        trials = {trial.name: trial for trial in self.plan.planned()}
        return View(
            self.plan.folder,
            self.plan.sweep,
            epochs=9,
            total=self.plan.count,
            rows=lambda: (
                [Row(trials[n], s, None) for n, s in self.states.items() if s != "run"]
                + [Row(trials[n], "waiting", None) for n, s in self.states.items() if s == "run"]
            ),
            running=lambda: {n for n, s in self.states.items() if s == "run"},
            clock=lambda: self.now,
        )

    def train(self, name: str, epoch: float, state: str, *, at: float) -> None:
        log = EventLog(self.plan.folder / name / "events.jsonl")
        log.metrics({"train/epoch": epoch}, step=round(epoch * 10))
        log.close()
        self.states[name], self.now = state, at


def headline(view: View) -> str:
    view.refresh()
    return view.headline()


def test_nothing_is_said_before_there_is_evidence(tmp_path: Path) -> None:
    scene = Scene(planner(tmp_path, ALL))
    view = scene.look()
    assert "left" not in headline(view)
    scene.train("trial-000", 8.9, "run", at=100.0)
    assert headline(view) == "1 running, 3 to come"


def test_the_pace_of_this_start_decides(tmp_path: Path) -> None:
    scene = Scene(planner(tmp_path, ALL))
    view = scene.look()
    view.refresh()
    scene.train("trial-000", 9.0, "done", at=200.0)
    # 27 epochs are left, and 9 took 200 s.
    assert headline(view).endswith("3 to come; about 10:00 left")
    # Two at a time: 18 more epochs in 120 s, so 9 are left at 27 in 320 s.
    scene.train("trial-001", 9.0, "done", at=200.0)
    scene.train("trial-002", 9.0, "done", at=320.0)
    assert headline(view).endswith("1 to come; about 1:47 left")
    # Started again, what went before says nothing about the time that was lost in between.
    assert "left" not in headline(scene.look())


def test_trials_to_come_count_as_far_as_asha_lets_them_go_on(tmp_path: Path) -> None:
    scene = Scene(planner(tmp_path, HALVED))
    view = scene.look()
    view.refresh()
    scene.train("trial-000", 9.0, "done", at=90.0)
    scene.train("trial-001", 1.0, "stopped", at=100.0)
    # 10 epochs took 100 s; 7/3 are to come.
    assert headline(view).endswith("1 to come; about 0:23 left")
    # 2 more epochs are sure to come now, and 6 with a chance of one third.
    scene.train("trial-002", 1.0, "run", at=110.0)
    assert headline(view).endswith("0 to come; about 0:40 left")


def test_logs_to_which_nothing_is_added_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(planner(tmp_path, ALL))
    view = scene.look()
    read: list[str] = []
    monkeypatch.setattr(_Curve, "read", lambda self, log, metric: read.append(log.parent.name))
    names = list(scene.states)
    view.refresh()
    assert read == names
    scene.states[names[1]] = "run"
    for _ in range(3):
        read.clear()
        view.refresh()
        assert read == [names[1]]
    # Once more after its end, and one that has come and gone unseen.
    scene.states |= {names[1]: "done", names[2]: "stopped"}
    read.clear()
    view.refresh()
    assert read == names[1:3]
    read.clear()
    view.refresh()
    assert read == []


def test_a_trial_that_failed_and_is_tried_again_counts_once(tmp_path: Path) -> None:
    plan = planner(tmp_path, ALL)
    first, *others = plan.planned()
    rows = [Row(first, "failed", None), *(Row(trial, "waiting", None) for trial in others)]
    view = View(
        plan.folder,
        plan.sweep,
        epochs=9,
        total=4,
        rows=lambda: rows,
        running=lambda: {first.name},
    )
    assert headline(view) == "1 running, 3 to come"


@pytest.mark.parametrize(
    ("codes", "code"), [([65, 65], 65), ([65, 71], 70), ([70], 70), ([71], 71)]
)
def test_a_sweep_without_a_result_ends_with_the_code_of_its_trials(
    codes: list[int], code: int, tmp_path: Path
) -> None:
    trials = planner(tmp_path, "trials: 3\nspace: {seed: {choice: [1, 2, 3]}}").planned()
    rows = [
        Row(one, "failed", None, f"trial {one.number} is why", exit_code=of_trial)
        for one, of_trial in zip(trials, codes, strict=False)
    ]
    with pytest.raises(OrchestratorError, match="the first one: trial 0 is why") as raised:
        refuse_empty(rows)
    assert raised.value.exit_code == code
    refuse_empty([*rows, Row(trials[-1], "done", {})])
