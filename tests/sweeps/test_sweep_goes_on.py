"""Sweeps that are started again: after trials that failed, with other settings, at their end."""

from __future__ import annotations

import errno
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import ConfigError, StorageError
from orchestrator.storage.run_files import STOP
from orchestrator.sweeps import runner
from orchestrator.tracking.events import Event, metric_history, read_events
from tests.sweeps.bucket_sweeps import Bucket, Sweep
from tests.sweeps.test_sweep_in_bucket import SECTIONS, SPACE

RANDOM = f"trials: 4{SPACE}"
#: Of a run that was stopped before its first evaluation.
CUT_SHORT = {"state": "preempted", "metrics": {"AP": None}, "steps": 0}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Sweep]:
    """Makes a sweep of a section."""
    numbers = itertools.count()
    return lambda section: Sweep(tmp_path / f"sweep-{next(numbers)}", section, monkeypatch)


def failing(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, fails: Callable[[str, int | None], bool]
) -> None:
    """Have trials fail, by name and the step they are to train to, as on a full disk."""

    def train(resolved: Any, run_dir: Path, **rest: Any) -> None:
        if fails(run_dir.name, resolved.experiment.train.max_steps):
            raise StorageError("the disk is full")
        sweep._train(resolved, run_dir, **rest)

    monkeypatch.setattr(runner, "train", train)


# --- populations -------------------------------------------------------------------------------


def test_a_population_whose_members_all_failed_goes_on_once_the_cause_is_gone(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(SECTIONS["pbt"])
    assert whole.drive(None) == 0
    sweep = made(SECTIONS["pbt"])
    failing(sweep, monkeypatch, lambda name, until: until == 2)
    for _ in range(2):
        with pytest.raises(StorageError, match="all 4 members failed on their way to epoch 2"):
            sweep.drive(None)
    failing(sweep, monkeypatch, lambda name, until: False)
    assert sweep.drive(None) == 0
    assert sweep.outcome() == whole.outcome()


@pytest.mark.parametrize("until", [2, None])
def test_a_member_that_failed_is_replaced_or_tried_again(
    made: Callable[[str], Sweep],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    until: int | None,
) -> None:
    whole = made(SECTIONS["pbt"])
    assert whole.drive(None) == 0
    sweep = made(SECTIONS["pbt"])
    failing(sweep, monkeypatch, lambda name, to: (name, to) == ("trial-001", until))
    assert sweep.drive(None) == 0
    said = capsys.readouterr().out
    if until == 2:
        # Before the end somebody takes its place at once.
        assert "trial-001 failed on its way to epoch 2: StorageError: the disk is full" in said
        assert {trial["state"] for trial in sweep.summary()["trials"]} == {"done"}
        return
    assert sweep.summary()["trials"][1]["state"] == "failed"
    failing(sweep, monkeypatch, lambda name, until: False)
    sweep.started.clear()
    assert sweep.drive(None) == 0
    assert sweep.started == ["trial-001"]
    assert sweep.outcome() == whole.outcome()


def test_a_population_that_was_judged_keeps_its_size(made: Callable[[str], Sweep]) -> None:
    sweep = made(SECTIONS["pbt"])
    assert sweep.drive(None) == 0
    before = sweep.summary()
    for trials in (2, 6):
        sweep.overrides = (f"sweep.trials={trials}",)
        with pytest.raises(ConfigError, match=f"is {trials}, and 4 members of this"):
            sweep.drive(None)
    sweep.overrides = ()
    assert sweep.drive(None) == 0
    assert sweep.summary() == before


def test_a_member_whose_clone_is_gone_does_not_begin_again_unsaid(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = made(SECTIONS["pbt"])
    failing(sweep, monkeypatch, lambda name, until: until is None)
    with pytest.raises(StorageError, match="all 4 trials failed"):
        sweep.drive(None)
    failing(sweep, monkeypatch, lambda name, until: False)
    lines = (sweep.work / "sweep.jsonl").read_text().splitlines()
    (clone,) = (entry for entry in map(json.loads, lines) if entry["kind"] == "cloned")
    member = sweep.work / f"trial-{clone['trial']:03d}"
    kept = member.rename(sweep.folder / "kept")
    sweep.started.clear()
    with pytest.raises(StorageError, match=rf"{member.name}/ckpt: has no checkpoint of step 2,"):
        sweep.drive(None)
    assert sweep.started == []
    # One that was never replaced is trained again, to the same bits.
    kept.rename(member)
    other = next(n for n in range(4) if n not in (clone["trial"], clone["donor"]))
    shutil.rmtree(sweep.work / f"trial-{other:03d}")
    assert sweep.drive(None) == 0
    whole = made(SECTIONS["pbt"])
    assert whole.drive(None) == 0
    assert sweep.outcome() == whole.outcome()


def test_a_donor_whose_checkpoint_is_gone_is_named(made: Callable[[str], Sweep]) -> None:
    sweep = made(SECTIONS["pbt"])
    assert sweep.drive(None) == 0
    journal = sweep.work / "sweep.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    # As after a kill before the first clone.
    first = next(n for n, line in enumerate(lines) if json.loads(line)["kind"] == "cloned")
    clone = json.loads(lines[first])
    journal.write_text("".join(lines[:first]))
    shutil.rmtree(sweep.work / f"trial-{clone['donor']:03d}" / "ckpt")
    named = f"trial-{clone['trial']:03d} is to go on from that checkpoint of trial-"
    with pytest.raises(StorageError, match=f"no checkpoint of step 2. {named}"):
        sweep.drive(None)


# --- with other settings -----------------------------------------------------------------------


def test_what_decides_no_result_may_change(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(RANDOM)
    assert whole.drive(None) == 0
    sweep = made(RANDOM)
    failing(sweep, monkeypatch, lambda name, _: name == "trial-002")
    assert sweep.drive(None) == 0
    failing(sweep, monkeypatch, lambda name, _: False)
    sweep.overrides = ("data.root=moved", "train.log_every_steps=7", "train.max_failures=9")
    sweep.started.clear()
    assert sweep.drive(None) == 0
    assert sweep.started == ["trial-002"]
    assert sweep.outcome() == whole.outcome()


def test_another_experiment_goes_on_by_force_and_says_what_stays(
    made: Callable[[str], Sweep],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = made(RANDOM)
    failing(sweep, monkeypatch, lambda name, _: name == "trial-002")
    assert sweep.drive(None) == 0
    failing(sweep, monkeypatch, lambda name, _: False)
    sweep.overrides = ("train.clip_norm=3.0",)
    with pytest.raises(ConfigError, match=r"clip_norm: .*(.|\n)*--force-resume"):
        sweep.drive(None)
    sweep.started.clear()
    assert sweep.drive(None, force=True) == 0
    assert sweep.started == ["trial-002"]
    assert "forced: 3 of the trials have ended and stay what they are" in capsys.readouterr().out
    # It belongs to the experiment as it is now.
    assert sweep.drive(None) == 0


def test_another_space_is_refused_forced_or_not_and_changes_nothing(
    made: Callable[[str], Sweep],
) -> None:
    sweep = made(RANDOM)
    assert sweep.drive(None) == 0
    before = (sweep.work / "sweep.jsonl").read_bytes()
    text = sweep.file.read_text()
    sweep.file.write_text(text.replace("[1.0e-3, 1.0e-1]", "[1.0e-3, 1.0e-2]"))
    with pytest.raises(ConfigError, match="holds another sweep"):
        sweep.drive(None)
    with pytest.raises(ConfigError, match=r"trial-000 was planned with train.optimizer.lr=.* and"):
        sweep.drive(None, force=True)
    sweep.file.write_text(text)
    assert sweep.drive(None) == 0
    assert (sweep.work / "sweep.jsonl").read_bytes() == before


def test_with_fewer_trials_those_that_are_left_still_come_to_their_end(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = made(RANDOM)
    failing(sweep, monkeypatch, lambda name, _: name == "trial-001")
    assert sweep.drive(None) == 0
    failing(sweep, monkeypatch, lambda name, _: False)
    sweep.overrides = ("sweep.trials=3",)
    sweep.started.clear()
    assert sweep.drive(None) == 0
    assert sweep.started == ["trial-001"]


@pytest.mark.parametrize("kind", ["folder", "bucket"])
def test_the_folder_of_a_run_is_none_for_a_sweep(
    made: Callable[[str], Sweep], tmp_path: Path, kind: str
) -> None:
    sweep = made(RANDOM)
    bucket = Bucket(tmp_path / "bucket") if kind == "bucket" else None
    run = sweep.work if bucket is None else bucket.path / "bucket" / "runs" / "swept"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"run.json: a run of its own has this name. Next: give"):
        sweep.drive(bucket)
    assert sweep.started == []


# --- stopping, tracking, the end ---------------------------------------------------------------


def test_a_wish_to_stop_that_comes_before_the_workers_is_not_lost(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.cluster.stop_wish import StopWish
    from tests.support.waiting import wait_for

    sweep = made(RANDOM)

    def train(resolved: Any, run_dir: Path, **_: Any) -> None:
        sweep.started.append(run_dir.name)
        assert sweep.fleet is not None
        sweep.fleet.stop()  # While the annotations are read.
        StopWish(run_dir)
        wait_for((run_dir / STOP).exists, 10.0)
        (run_dir / "result.json").write_text(json.dumps(CUT_SHORT))

    monkeypatch.setattr(runner, "train", train)
    assert sweep.drive(None) == 75
    assert sweep.started == ["trial-000"]
    assert sweep.summary()["trials"][0]["state"] == "preempted"
    # The next start is not stopped by it.
    failing(sweep, monkeypatch, lambda name, _: False)
    assert sweep.drive(None) == 0


def test_a_log_that_cannot_be_read_for_a_moment_costs_no_trial(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(SECTIONS["asha"])
    assert whole.drive(None) == 0
    sweep = made(SECTIONS["asha"])
    calls = itertools.count()

    def read_stale(log: Path, offset: int) -> Iterator[Event]:
        if next(calls) % 2 == 0:
            raise OSError(errno.ESTALE, "Stale file handle")
        return read_events(log, offset)

    monkeypatch.setattr(runner, "read_events", read_stale)
    assert sweep.drive(None) == 0
    assert sweep.outcome() == whole.outcome()


@pytest.mark.parametrize("kind", ["asha", "pbt"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_trial_that_somebody_else_has_stopped_goes_on(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch, kind: str, times: int
) -> None:
    """As a cloud does that takes back the node of one of its workers."""
    whole = made(SECTIONS[kind])
    assert whole.drive(None) == 0
    sweep = made(SECTIONS[kind])
    left = [times]

    def train(resolved: Any, run_dir: Path, **rest: Any) -> None:
        if run_dir.name == "trial-001" and left[0]:
            left[0] -= 1
            (run_dir / "result.json").write_text(json.dumps(CUT_SHORT))
            return
        sweep._train(resolved, run_dir, **rest)

    monkeypatch.setattr(runner, "train", train)
    # After three starts in vain it is left to the next start, and that is said.
    assert sweep.drive(None) == (0 if times < 3 else 75)
    if times == 3:
        assert sweep.summary()["state"] == "stopped"
        assert sweep.drive(None) == 0
    # Of a population everybody waits for it, and with ASHA others have been judged before.
    if kind == "pbt":
        assert sweep.outcome() == whole.outcome()
    assert {trial["state"] for trial in sweep.summary()["trials"]} <= {"done", "stopped"}


def test_the_curve_of_a_sweep_ends_at_its_best_score_whatever_failed_on_the_way(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(RANDOM)
    assert whole.drive(None) == 0
    best = whole.summary()["best"]
    sweep = made(RANDOM)
    failing(sweep, monkeypatch, lambda name, _: name == best)
    assert sweep.drive(None) == 0
    failing(sweep, monkeypatch, lambda name, _: False)
    assert sweep.drive(None) == 0
    log = sweep.work / "events.jsonl"
    scores = [trial["score"] for trial in sweep.summary()["trials"]]
    for key in ("val/AP", "sweep/best_AP"):
        assert metric_history(log, key)[-1].value == max(scores)


class Shipper:
    """Stands for the process that ships; a server that is away takes nothing."""

    away = True

    def __init__(self, folder: Path, spec: Any) -> None:
        self.folder, self.spec = folder, spec

    def start(self) -> None:
        self.spec.save(self.folder, None)

    def close(self, status: str, *, artifacts: dict[str, str], tags: dict[str, str]) -> None:
        from orchestrator.tracking.shipping import RunShipper
        from tests.tracking.failing_store import Store

        type(self).ends.append(status)
        if not self.away:
            client = Store()
            client.log_artifact = lambda *_: None
            client.log_inputs = lambda *_: None
            shipper = RunShipper(self.folder, self.spec, lambda uri: client)
            shipper.change(tags=tags, artifacts=artifacts)
            shipper.finish(status)

    ends: list[str] = []  # noqa: RUF012


def test_a_sweep_that_is_over_is_shipped_by_the_same_command(
    made: Callable[[str], Sweep], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = made(RANDOM)
    monkeypatch.setattr("orchestrator.sweeps.tracking.MlflowShipper", Shipper)
    monkeypatch.setattr("orchestrator.sweeps.tracking.datasets_of", lambda _: [])
    monkeypatch.setattr("orchestrator.sweeps.tracking.description", lambda _: "")
    monkeypatch.setattr(Shipper, "ends", [])
    sweep.overrides = ("tracking.mlflow=http://server:5000",)
    assert sweep.drive(None) == 0
    assert sweep.drive(None) == 0
    monkeypatch.setattr(Shipper, "away", False)
    assert sweep.drive(None) == 0
    assert Shipper.ends == ["FINISHED"] * 3
    # Now everything is there.
    assert sweep.drive(None) == 0
    assert Shipper.ends == ["FINISHED"] * 3


def test_where_mlflow_takes_nothing_the_end_waits_for_one_trial_alone(
    made: Callable[[str], Sweep],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from orchestrator.storage.run_files import MLFLOW_SPEC
    from orchestrator.sweeps import tracking
    from orchestrator.tracking.mlflow_shipper import Shipped

    sweep = made(RANDOM)
    monkeypatch.setattr(tracking, "MlflowShipper", Shipper)
    monkeypatch.setattr(tracking, "datasets_of", lambda _: [])
    monkeypatch.setattr(tracking, "description", lambda _: "")
    monkeypatch.setattr(
        runner,
        "train",
        lambda *words, **rest: (sweep._train(*words, **rest), (words[1] / MLFLOW_SPEC).touch()),
    )
    asked: list[str] = []

    def ship_later(folder: Path, **_: Any) -> Shipped:
        asked.append(folder.name)
        return Shipped(None, 3, (), False, "refused")

    monkeypatch.setattr(tracking, "ship_later", ship_later)
    sweep.overrides = ("tracking.mlflow=http://server:5000",)
    assert sweep.drive(None) == 0
    assert asked == ["trial-000"]
    said = capsys.readouterr().out
    assert "trial-000: MLflow lacks 3 metric points" in said
    assert f"the other trials are not tried. Next: orchestrator ship {sweep.work}" in said


def test_a_journal_that_the_disk_refuses_is_closed_without_a_second_complaint(
    tmp_path: Path,
) -> None:
    import resource

    from orchestrator.sweeps.journal import Journal

    journal = Journal(tmp_path)
    journal.add("open", config={})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size, before[1]))
    try:
        with pytest.raises(StorageError, match="the journal of the sweep cannot be written"):
            journal.add("trial", trial=0)
        journal.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry.kind for entry in Journal(tmp_path).entries] == ["open"]
