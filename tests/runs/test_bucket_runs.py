"""A run in a bucket: killed anywhere, its folder gone, it goes on elsewhere and ends the same."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.manifest import copy_commit
from orchestrator.config.places import bucket_of, folder_of
from orchestrator.config.resolve import load_experiment
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import StorageError
from orchestrator.storage import bucket as object_storage
from orchestrator.storage.bucket_mirror import BucketMirror
from orchestrator.storage.local import LocalStorage, Storage
from orchestrator.storage.run_files import EVENTS_KEPT, STOP
from orchestrator.tracking.events import metric_history
from orchestrator.training import session
from orchestrator.training.job import Outcome
from orchestrator.training.session import run_rank
from tests.support.chaos_run import CPU, STEPS, small_detector, small_plan
from tests.support.child_processes import exit_code_of
from tests.support.faulty_storage import BucketStorage, FaultyStorage
from tests.support.local_runs import StoppingStream

LOCATION = "s3://bucket/runs/chaos?region=here"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BucketStorage:
    storage = BucketStorage(tmp_path / "bucket")
    monkeypatch.setattr(object_storage, "_opened", lambda location: storage)
    monkeypatch.setattr(session, "build_detector", small_detector)
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)
    return storage


def start(folder: Path, digits: Path, *overrides: str, stop_at: int | None = None) -> Outcome:
    """What a driver does for a run in a bucket, without Ray."""
    with BucketMirror(LOCATION, folder / "chaos") as mirror:
        plan = small_plan(folder / "chaos", digits, *overrides)
        (plan.job.path / STOP).unlink(missing_ok=True)
        plan = replace(plan, job=replace(plan.job, bucket=LOCATION, fence=mirror.lock.advance()))
        outcome = run_rank(plan.job, StoppingStream(plan, stop_at), accelerator=CPU)
        mirror.settle()
    return outcome


def digests(storage: Storage) -> dict[int, dict[str, str]]:
    store = CommitStore(storage)
    return {
        commit.step: {
            name: record.sha256
            for name, record in commit.manifest.files.items()
            if name.endswith(".safetensors")
        }
        for commit in store.commits()
        if store.read_files(commit.step)
    }


def logged(storage: Storage, folder: Path) -> tuple[list[int], list[int]]:
    """Steps of which the log in the bucket has the loss, and those of which it has the AP."""
    folder.mkdir()
    log = folder / "events.jsonl"
    log.write_bytes(b"".join(storage.read("events.jsonl")))
    losses, scores = (metric_history(log, key) for key in ("train/loss", "val/epoch"))
    return [point.step for point in losses], [point.step for point in scores]


def test_the_folder_of_a_run_may_be_lost_at_any_time(
    tmp_path: Path, digits: Path, bucket: BucketStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path / "whole", digits)
    whole = run_rank(plan.job, LocalStream(plan.batches), accelerator=CPU)
    here = tmp_path / "here"
    here.mkdir()
    for at in (2, 7):
        assert start(here, digits, stop_at=at).steps == at + 1
        shutil.rmtree(here / "chaos")
    ended = start(here, digits)
    assert ended.resumed_from == 8
    assert (ended.weights_sha256, ended.metrics) == (whole.weights_sha256, whole.metrics)
    assert ended.best_checkpoint is not None
    assert ended.best_checkpoint.startswith("s3:/")
    losses, scores = logged(bucket, tmp_path / "log")
    assert losses == list(range(1, STEPS + 1))
    assert scores == [6, 12]
    # As does a start that has nothing left to do.
    shutil.rmtree(here / "chaos")
    again = start(here, digits)
    assert (again.resumed_from, again.metrics) == (STEPS, whole.metrics)
    assert (here / "chaos" / "eval" / "coco_results.json").is_file()


def test_a_driver_never_undoes_what_a_rank_elsewhere_has_brought(
    tmp_path: Path, digits: Path, bucket: BucketStorage
) -> None:
    (tmp_path / "here").mkdir()
    start(tmp_path / "here", digits, stop_at=3)
    # A driver on another machine, and rank 0 on a third, each with a folder of its own.
    mine, far = tmp_path / "driver" / "chaos", tmp_path / "rank" / "chaos"
    with BucketMirror(LOCATION, mine) as mirror:
        old = (mine / "events.jsonl").read_bytes()
        far.mkdir(parents=True)
        shutil.copy(mine / "events.jsonl", far)
        plan = small_plan(far, digits)
        job = replace(plan.job, bucket=LOCATION, fence=mirror.lock.advance())
        run_rank(job, StoppingStream(plan, None), accelerator=CPU)
        newer = b"".join(bucket.read("events.jsonl"))
        assert newer.startswith(old)
        assert newer != old
        # What only the driver writes is brought all the same.
        (mine / "result.json").write_text("{}")
        mirror.settle()
        # Not even where somebody has touched the old copy.
        (mine / "events.jsonl").touch()
    assert b"".join(bucket.read("events.jsonl")) == newer
    assert bucket.read_file("result.json", limit=9) == b"{}"
    losses, scores = logged(bucket, tmp_path / "log")
    assert losses == list(range(1, STEPS + 1))
    assert scores == [6, 12]


def killed_start(folder: str, digits: str, bucket: str, strike: int | None, calls: str) -> None:
    """Target of a child: a start that is killed before one of its calls to the bucket."""
    inner = BucketStorage(Path(bucket))
    storage = FaultyStorage(inner, strike_at=strike, kill=True)
    with (
        mock.patch.object(object_storage, "_opened", return_value=storage),
        mock.patch.object(session, "build_detector", small_detector),
    ):
        start(Path(folder), Path(digits), *CALM)
    Path(calls).write_text("\n".join(storage.calls))


#: Few commits, and one that goes away.
CALM = ("train.checkpoint={every_epochs: 1, keep_last: 2, keep_best: 1}", "train.epochs=4")


@pytest.mark.parametrize("every", [29, pytest.param(7, marks=pytest.mark.slow)])
def test_a_kill_at_some_call_to_the_bucket_loses_no_bit_and_no_metric(
    every: int, tmp_path: Path, digits: Path, bucket: BucketStorage
) -> None:
    """Before every so manieth call that changes something; the folder is lost with the process."""

    def child(name: str, strike: int | None) -> int | None:
        folder = tmp_path / name
        folder.mkdir()
        place = (str(folder), str(digits), str(tmp_path / f"bucket-{name}"), strike)
        return exit_code_of(killed_start, *place, str(tmp_path / "calls"))

    assert child("whole", None) == 0
    expected = digests(BucketStorage(tmp_path / "bucket-whole"))
    # The last two of four, and the best where it is neither; one at least has gone away.
    assert {18, 24} <= expected.keys() < {6, 12, 18, 24}
    calls = (tmp_path / "calls").read_text().splitlines()
    changing = [
        number
        for number, call in enumerate(calls)
        # Signs of life come when they come.
        if call.startswith(("close", "unlink")) and "lock/beat" not in call
    ]
    # Sixty, and in most runs a few more.
    assert len(changing) > 40
    for number in changing[every // 2 :: every]:
        name = str(number)
        assert child(name, number) == -signal.SIGKILL
        left = BucketStorage(tmp_path / f"bucket-{name}")
        commits = CommitStore(left).commits()
        if commits:
            losses, scores = logged(left, tmp_path / f"log-{name}")
            assert set(losses) >= set(range(1, commits[-1].step + 1)), calls[number]
            assert set(scores) >= {c.step for c in commits if c.metrics is not None}
        with mock.patch.object(object_storage, "_opened", return_value=left):
            shutil.rmtree(tmp_path / name)
            (tmp_path / name).mkdir()
            start(tmp_path / name, digits, *CALM)
        assert digests(left) == expected, calls[number]
        losses, scores = logged(left, tmp_path / f"end-{name}")
        assert (sorted(losses), sorted(scores)) == (list(range(1, 25)), [6, 12, 18, 24])


def test_the_best_commit_lies_in_the_folder_for_other_commands(
    tmp_path: Path, digits: Path, bucket: BucketStorage
) -> None:
    outcome = start(tmp_path, digits, "train.max_steps=6")
    assert outcome.best_checkpoint is not None
    with BucketMirror(LOCATION, tmp_path / "chaos") as mirror:
        brought = copy_commit(mirror.storage, outcome.best_checkpoint, LocalStorage(mirror.run_dir))
        again = copy_commit(mirror.storage, outcome.best_checkpoint, LocalStorage(mirror.run_dir))
    assert brought == again
    assert brought.parent == tmp_path / "chaos" / "ckpt"
    best = CommitStore(LocalStorage(tmp_path / "chaos")).best()
    assert best is not None
    assert (best.step, best.path) == (6, str(brought))
    (weights,) = (key for key in bucket.list(f"ckpt/{brought.name}") if "weights" in key.name)
    bucket.write_file(f"ckpt/{brought.name}/{weights.name}", [b"x" * weights.size])
    with (
        pytest.raises(StorageError, match="does not match its digest"),
        BucketMirror(LOCATION, tmp_path / "chaos") as mirror,
    ):
        copy_commit(mirror.storage, outcome.best_checkpoint, LocalStorage(mirror.run_dir))


def test_a_folder_that_is_somebody_elses_is_left_alone(
    tmp_path: Path, bucket: BucketStorage
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(StorageError, match=r"run: holds a run of its own.*another `scratch`"):
        BucketMirror(LOCATION, run).__enter__()
    assert [path.name for path in run.iterdir()] == ["run.json"]
    (run / "run.json").rename(run / "home.txt")
    with pytest.raises(StorageError, match=r"is the working folder of \{\}, not of s3:/"):
        BucketMirror(LOCATION, run).__enter__()
    # The bucket was given back both times.
    with BucketMirror(LOCATION, tmp_path / "other"):
        pass


def test_a_folder_becomes_what_the_bucket_says(tmp_path: Path, bucket: BucketStorage) -> None:
    run = tmp_path / "run"
    with BucketMirror(LOCATION, run):
        (run / "events.jsonl").write_bytes(b"one\ntwo\nhal")
        (run / "eval").mkdir()
        (run / "eval" / "per_class.csv").write_bytes(b"class\n")
        (run / "result.json").write_bytes(b"{}")
        (run / "mlflow.log").write_bytes(b"of this machine")
    assert [e.name for e in bucket.list("") if not e.is_dir] == ["events.jsonl", "result.json"]
    (run / "events.jsonl").write_bytes(b"one\ntwo\nand more that nobody knows of\n")
    (run / "run_card.md").write_bytes(b"of a start that the bucket never heard of")
    with BucketMirror(LOCATION, run):
        assert (run / "events.jsonl").read_bytes() == b"one\ntwo\n"
        assert (run / EVENTS_KEPT).read_bytes() == b"8"
        assert (run / "eval" / "per_class.csv").read_bytes() == b"class\n"
        assert not (run / "run_card.md").exists()


def test_a_bucket_that_has_lost_a_run_does_not_take_its_copy_along(
    tmp_path: Path, digits: Path, bucket: BucketStorage
) -> None:
    (tmp_path / "here").mkdir()
    start(tmp_path / "here", digits, stop_at=3)
    log = tmp_path / "here" / "chaos" / "events.jsonl"
    before = log.read_bytes()
    deleted = tmp_path / "deleted"
    (tmp_path / "bucket").rename(deleted)
    (tmp_path / "bucket").mkdir()
    said = r"has no events\.jsonl, of which \d+ bytes were brought there.*Next: put back what was"
    with pytest.raises(StorageError, match=said):
        start(tmp_path / "here", digits)
    assert log.read_bytes() == before
    shutil.rmtree(tmp_path / "bucket")
    deleted.rename(tmp_path / "bucket")
    assert start(tmp_path / "here", digits).resumed_from == 4


def test_who_lost_the_run_brings_nothing(tmp_path: Path, bucket: BucketStorage) -> None:
    ghost = BucketMirror(LOCATION, tmp_path / "a").__enter__()
    bucket.write_file("lock/lease-000000009-" + "a" * 32 + ".json", [b"of another one"])
    (ghost.run_dir / "result.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match="was shut out"):
        ghost.__exit__(None, None, None)
    assert "result.json" not in [entry.name for entry in bucket.list("")]


def test_where_a_run_is_and_where_it_works(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(
        """
name: tiny
detector: {name: ssd}
data:
  train: {images: a, annotations: a.json}
  val: {images: a, annotations: a.json}
train: {epochs: 2, batch_size: 2, optimizer: {name: sgd, lr: 0.1}}
scratch: /local
"""
    )
    kept = load_experiment(file, ["storage=gs://bucket/runs/?retry=3"]).experiment
    assert bucket_of(kept) == "gs://bucket/runs/tiny?retry=3"
    assert folder_of(kept) == Path("/local/tiny")
    plain = load_experiment(file, ["storage=/runs"]).experiment
    assert bucket_of(plain) is None
    assert folder_of(plain) == Path("/runs/tiny")
