"""``train.continue_from``: a run that begins with the whole state of another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.checkpoints.other_run import find_state
from orchestrator.config.resolve import load_experiment
from orchestrator.data.label_map import LabelMap
from orchestrator.errors import ConfigError, DataError, StorageError
from orchestrator.runs import plan as planning
from orchestrator.runs.driver import identity_of
from orchestrator.runs.identity import examine_run, record_run
from orchestrator.runs.tracking import lineage_of
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import CHECKPOINTS
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.tracking.ship_state import ShipState
from orchestrator.training import session
from tests.support.chaos_run import digests, small_detector, small_plan
from tests.support.local_runs import train

CONSTANT = "train.schedule={name: constant}"
RARELY = "train.checkpoint={every_epochs: 1, keep_last: 20}"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", small_detector)


@pytest.fixture
def first(tmp_path: Path, digits: Path) -> Path:
    """A run of two epochs, 12 steps."""
    train(small_plan(tmp_path / "first", digits, CONSTANT, RARELY, "train.epochs=2"))
    return tmp_path / "first"


def second(folder: Path, digits: Path, first: Path, *overrides: str):
    more = (f"train.continue_from={first}", "train.epochs=4", *overrides)
    return small_plan(folder, digits, CONSTANT, RARELY, *more)


def test_it_ends_where_the_other_run_would_have(tmp_path: Path, digits: Path, first: Path) -> None:
    train(small_plan(tmp_path / "whole", digits, CONSTANT, RARELY, "train.epochs=4"))
    plan = second(tmp_path / "second", digits, first)
    assert train(plan).steps == 24
    expected = digests(tmp_path / "whole")
    assert digests(tmp_path / "second") == {step: expected[step] for step in (18, 24)}
    (note,) = [e for e in read_events(plan.job.path / "events.jsonl") if e.kind == "continued"]
    assert note.step == 12
    assert str(first) in note.text


def test_once_it_has_a_checkpoint_the_other_run_may_go(
    tmp_path: Path, digits: Path, first: Path
) -> None:
    folder = tmp_path / "second"
    plan = second(folder, digits, first, "train.max_steps=18")
    record(plan)
    assert train(plan).steps == 18
    again = second(folder, digits, first)
    shutil.rmtree(first)
    gone = second(folder, digits, first)
    assert identity_of(gone.job) == identity_of(again.job) == identity_of(plan.job)
    assert train(gone).steps == 24


def record(plan) -> None:
    """Leave in the run folder what a driver leaves before training."""
    tree = load_experiment(plan.job.path.with_suffix(".yaml")).tree
    tree["train"]["continue_from"] = plan.job.experiment.train.continue_from
    identity = identity_of(plan.job)
    claim = examine_run(
        plan.job.path,
        identity,
        tree,
        label_map=plan.job.label_map,
        force=False,
        commits=LocalStorage(plan.job.path),
    )
    record_run(plan.job.path, identity, tree, claim)


def test_the_other_run_may_go_on_meanwhile(tmp_path: Path, digits: Path, first: Path) -> None:
    folder = tmp_path / "second"
    plan = second(folder, digits, first, "train.max_steps=18")
    record(plan)
    assert train(plan).steps == 18
    train(small_plan(first, digits, CONSTANT, RARELY, "train.epochs=3"))
    assert identity_of(second(folder, digits, first).job) == identity_of(plan.job)


def test_before_it_has_a_checkpoint_it_begins_where_it_began(
    tmp_path: Path, digits: Path, first: Path
) -> None:
    """It was killed before its first commit, and the other run went on."""
    folder = tmp_path / "second"
    plan = second(folder, digits, first)
    record(plan)
    log = EventLog(folder / "events.jsonl")
    log.note("continued", "and killed", step=12)
    log.close()
    train(small_plan(first, digits, CONSTANT, RARELY, "train.epochs=3"))
    again = second(folder, digits, first)
    assert again.job.initial == plan.job.initial
    record(again)
    shutil.rmtree(first / CHECKPOINTS / Path(plan.job.initial.path).name)
    with pytest.raises(ConfigError, match=r"train\.continue_from: sha256 \w+ there, \w+ now"):
        record(second(folder, digits, first))


def test_another_run_does_not_take_its_place(tmp_path: Path, digits: Path, first: Path) -> None:
    folder = tmp_path / "second"
    plan = second(folder, digits, first, "train.max_steps=18")
    record(plan)
    assert train(plan).steps == 18
    train(small_plan(tmp_path / "third", digits, CONSTANT, RARELY, "seed=5"))
    with pytest.raises(ConfigError, match=r"train\.continue_from: sha256 \w+ there, \w+ now"):
        record(second(folder, digits, tmp_path / "third"))
    # The same run, moved.
    first.rename(tmp_path / "moved")
    record(second(folder, digits, tmp_path / "moved"))
    with pytest.raises(ConfigError, match=r"train\.continue_from: sha256 \w+ there, none now"):
        record(small_plan(folder, digits, CONSTANT, RARELY, "train.epochs=4"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.optimizer={name: adamw, lr: 0.001}"], "does not belong to this AdamW and model"),
        (["train.epochs=1"], r"train\.epochs is 1.*/first/ckpt/\d+ has 12 steps done"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_before_anything_starts(
    overrides: list[str],
    message: str,
    tmp_path: Path,
    digits: Path,
    first: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planning, "skeleton", small_detector)
    assert planning.require_state(second(tmp_path / "a", digits, first).job) == 12
    with pytest.raises(ConfigError, match=message):
        planning.require_state(second(tmp_path / "b", digits, first, *overrides).job)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"first/.* cannot be gone on with: \d+ of \d+ tensors"):
        planning.require_state(second(tmp_path / "c", digits, first).job)


def test_what_cannot_be_gone_on_with_is_refused(tmp_path: Path, digits: Path, first: Path) -> None:
    with pytest.raises(StorageError, match=r"does not exist; did you mean .*first"):
        second(tmp_path / "second", digits, tmp_path / "frist")
    with pytest.raises(DataError, match="neither a run with a checkpoint nor a checkpoint"):
        second(tmp_path / "second", digits, digits)
    with pytest.raises(ConfigError, match="is in a bucket; allowed is a folder"):
        find_state("s3://bucket/runs/first")
    with pytest.raises(ConfigError, match=r"train\.init_from and train\.continue_from both say"):
        second(tmp_path / "second", digits, first, f"train.init_from={first}")
    shorter = second(tmp_path / "second", digits, first, "train.epochs=1")
    with pytest.raises(ConfigError, match=r"train\.epochs is 1"):
        train(shorter)
    plan = second(tmp_path / "second", digits, first)
    names = plan.job.label_map.names
    swapped = LabelMap((names[1], names[0], *names[2:]), plan.job.label_map.ids)
    with pytest.raises(ConfigError, match=r"train\.continue_from: .* was trained on the classes"):
        train(replace(plan, job=replace(plan.job, label_map=swapped)))


def test_an_older_checkpoint_than_the_newest_is_never_taken_in_silence(
    first: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = first / CHECKPOINTS / "000000012"
    assert find_state(str(first)).path == str(newest)
    (newest / "optimizer.safetensors").unlink()
    assert find_state(str(first)).path == str(first / CHECKPOINTS / "000000006")
    assert f"{newest}: optimizer.safetensors is missing" in caplog.text


def test_mlflow_is_told_where_it_comes_from(tmp_path: Path, digits: Path, first: Path) -> None:
    job = second(tmp_path / "second", digits, first).job
    assert job.initial is not None
    assert lineage_of(job) == {"continued_from": job.initial.path}
    ShipState("sqlite:///mlflow.db", run_id="abc").save(first)
    assert lineage_of(job) == {
        "continued_from": str(first / CHECKPOINTS / Path(job.initial.path).name),
        "continued_from_run": "abc",
    }
