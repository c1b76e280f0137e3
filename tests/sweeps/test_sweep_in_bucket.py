"""A sweep in a bucket: killed anywhere, its folder gone, it goes on elsewhere and ends the same."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.cli.main import main
from orchestrator.errors import OrchestratorError, PreemptedError, StorageError
from orchestrator.storage import bucket as object_storage
from orchestrator.storage.bucket_lock import BucketFence, BucketLock
from orchestrator.storage.lease import HeldError, Holder
from orchestrator.storage.local import LocalStorage
from orchestrator.sweeps import driver
from orchestrator.sweeps.bucket import SweepBucket, held_sweep
from orchestrator.sweeps.journal import Journal
from tests.sweeps.bucket_sweeps import LOCATION, Bucket, Sweep

SPACE = """
space:
  train.optimizer.lr: {loguniform: [1.0e-3, 1.0e-1]}
"""
SECTIONS = {
    "asha": f"trials: 4\nscheduler: asha\nasha: {{reduction_factor: 2}}{SPACE}",
    "pbt": f"trials: 4\nscheduler: pbt\npbt: {{interval_epochs: 2}}{SPACE}",
    "optuna": f"trials: 3\nsearch: optuna{SPACE}",
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_in_a_bucket_it_is_the_sweep_that_it_is_in_a_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "optuna":
        pytest.importorskip("optuna")
    plain = Sweep(tmp_path / "plain", SECTIONS[kind], monkeypatch)
    assert plain.drive(None) == 0
    sweep = Sweep(tmp_path / "sweep", SECTIONS[kind], monkeypatch)
    bucket = Bucket(tmp_path / "bucket")
    assert sweep.drive(bucket) == 0
    assert sweep.outcome() == plain.outcome()
    first = sweep.summary()
    assert first["best"] == plain.summary()["best"]
    # The best is named by its address, and at hand for other commands.
    root, _, inner = first["best_checkpoint"].partition(f"/{first['best']}/")
    assert root == "s3://bucket/runs/swept"
    best = CommitStore(LocalStorage(sweep.work / first["best"])).best()
    assert best is not None
    assert best.key == inner
    # Elsewhere nothing is trained again, and everything that commands read is there.
    sweep.lose_folder()
    sweep.started.clear()
    assert sweep.drive(bucket) == 0
    assert sweep.started == []
    assert sweep.summary() == first
    for trial in first["trials"]:
        left = {path.name for path in (sweep.work / trial["name"]).iterdir()}
        assert {"events.jsonl", "result.json", "difference.json", "driver.log"} <= left
    assert (sweep.work / first["best"] / inner).is_dir()


def cut_off(sweep: Sweep, bucket: Bucket) -> None:
    """A start that may come to its end, if the bucket is away at the very last calls only."""
    with contextlib.suppress(OrchestratorError):
        sweep.drive(bucket)


@pytest.mark.parametrize("every", [71, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["asha", "pbt"])
def test_cut_off_at_any_call_what_was_decided_stands_and_what_ended_is_not_done_again(
    kind: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or after every so manieth call that changes something; the folder is lost each time.

    From the call on the bucket does nothing any more for that driver, as if it had been killed.
    """
    whole, bucket = Sweep(tmp_path / "whole", SECTIONS[kind], monkeypatch), Bucket(tmp_path / "b")
    assert whole.drive(bucket) == 0
    changing = [
        number
        for number, call in enumerate(bucket.calls)
        if call.startswith(("close", "unlink")) and "lock/beat" not in call
    ]
    assert len(changing) > 100
    for number in changing[every // 2 :: every]:
        sweep = Sweep(tmp_path / str(number), SECTIONS[kind], monkeypatch)
        cut = Bucket(tmp_path / f"bucket-{number}", number)
        cut_off(sweep, cut)
        cut.strike = None
        left, ended = cut.journal(), {e["trial"] for e in cut.journal() if e["kind"] == "end"}
        sweep.lose_folder()
        sweep.started.clear()
        assert sweep.drive(cut) == 0
        assert cut.journal()[: len(left)] == left, bucket.calls[number]
        assert not {f"trial-{n:03d}" for n in ended} & set(sweep.started), bucket.calls[number]
        assert sweep.outcome() == whole.outcome(), bucket.calls[number]
        ends = [entry["trial"] for entry in cut.journal() if entry["kind"] == "end"]
        assert sorted(ends) == [0, 1, 2, 3], bucket.calls[number]


def test_two_drivers_do_not_hold_one_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, bucket = Sweep(tmp_path / "sweep", SECTIONS["asha"], monkeypatch), Bucket(tmp_path / "b")
    monkeypatch.undo()
    monkeypatch.setattr(object_storage, "_opened", bucket.open)
    with (
        BucketLock(LOCATION.replace("runs", "runs/swept"), heartbeat=0.05),
        pytest.raises(HeldError, match="in use by process"),
    ):
        sweep.drive(bucket)
    assert not sweep.work.exists()


def test_a_driver_that_was_shut_out_decides_nothing_and_undoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(tmp_path / "bucket")
    monkeypatch.setattr(object_storage, "_opened", bucket.open)
    monkeypatch.setattr(Holder, "ended_here", lambda _: True)
    location = LOCATION.replace("runs", "runs/swept")
    ghost = held_sweep(location, tmp_path / "old")
    old = ghost.__enter__()
    journal = Journal(tmp_path / "old", keep=old.keep_journal)
    journal.add("trial", trial=0)
    with held_sweep(location, tmp_path / "new") as new:
        later = Journal(tmp_path / "new", keep=new.keep_journal)
        later.add("end", trial=0)
        # The end of an upload that the ghost was in when it was taken for dead.
        with monkeypatch.context() as patch:
            patch.setattr(old.mirror.lock, "fence", lambda: SleepyFence(old))
            with pytest.raises(StorageError, match="was shut out"):
                journal.add("trial", trial=1)
        assert [entry.content["trial"] for entry in journal.entries] == [0]
    with held_sweep(location, tmp_path / "third"):
        kinds = [entry.kind for entry in Journal(tmp_path / "third").entries]
        assert kinds == ["trial", "end"]
    with pytest.raises(StorageError, match="was shut out"):
        ghost.__exit__(None, None, None)


class SleepyFence:
    """Looks the first time as it was before somebody took the sweep, and then as it is."""

    def __init__(self, sweep: SweepBucket) -> None:
        self.token = 1
        self.fence = BucketFence(sweep.mirror.location, self.token)
        self.asleep = True

    def __call__(self) -> None:
        if not self.asleep:
            self.fence()
        self.asleep = False


@pytest.mark.parametrize("verb", ["list", "status", "compare", "rerun", "report"])
def test_commands_that_read_folders_say_so_of_an_address(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "s3://bucket/runs/swept"]) == 71
    said = capsys.readouterr().err
    assert "s3://bucket/runs/swept: is in a bucket, and this command reads a folder" in said
    assert "`scratch`" in said


@pytest.mark.parametrize("end", [KeyboardInterrupt, PreemptedError])
def test_a_sweep_that_is_interrupted_before_its_trials_can_be_started_again(
    end: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path / "sweep", SECTIONS["asha"], monkeypatch)

    def connected(*_: object) -> None:
        raise end("while Ray starts")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "connected", connected)
        with pytest.raises(PreemptedError) as raised:
            sweep.drive(None)
    assert raised.value.exit_code == 75
    # Nothing went wrong, and MLflow and `orchestrator list` do not say so.
    assert sweep.summary()["state"] == "stopped"
    assert sweep.drive(None) == 0
    assert sweep.summary()["state"] == "finished"
