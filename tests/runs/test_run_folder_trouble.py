"""A run whose folder, log or disk is not what it was says so, and stops with 71 where it must."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.cli._shared.exit import run_guarded
from orchestrator.cli.main import main
from orchestrator.data.batch import Batch
from orchestrator.data.readers.coco import read_coco
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import StorageError
from orchestrator.runs.plan import Plan
from orchestrator.runs.run import NewestCommit
from orchestrator.runs.tracking import log_tags
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import EVALUATION, EVENTS, STOP
from orchestrator.storage.sealed import seal, unseal
from orchestrator.tracking.events import (
    EventLog,
    LogMark,
    lost_since,
    metric_history,
    read_events,
)
from orchestrator.training import session, validation
from orchestrator.training.job import Outcome
from orchestrator.training.session import open_store
from tests.support.chaos_run import small_detector, small_plan
from tests.support.commit_scenario import save
from tests.support.evaluators import fickle_detector
from tests.support.local_runs import StoppingStream, train
from tests.support.run_folders import rng, write_data, write_run
from tests.support.simulated_detectors import Skill, detect, make_truth
from tests.support.waiting import wait_for


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "build_detector", small_detector)
    monkeypatch.setattr(session, "_STOP_POLL_SECONDS", 0.0)


class DisturbedStream(LocalStream):
    """Does something while it hands out the batch of one step."""

    def __init__(self, plan: Plan, at: int, disturb: Callable[[Path], object]) -> None:
        super().__init__(plan.batches)
        self._folder, self._at, self._disturb = plan.job.path, at, disturb

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step == self._at:
                self._disturb(self._folder)
            yield batch


def _remove(folder: Path) -> None:
    while folder.exists():  # A commit may be under way.
        shutil.rmtree(folder, ignore_errors=True)


def _mount_another(folder: Path) -> None:
    folder.rename(folder.with_name("away"))
    shutil.copytree(folder.with_name("away"), folder, ignore=shutil.ignore_patterns("events.*"))


@pytest.mark.parametrize("every", [1, 6], ids=["commits-at-once", "commits-later"])
@pytest.mark.parametrize(
    "disturb",
    [
        _remove,
        lambda folder: folder.rename(folder.with_name("away")),
        _mount_another,
        lambda folder: (folder / EVENTS).unlink(),
        lambda folder: (folder / EVENTS).rename(folder / "old.jsonl"),
    ],
    ids=["removed", "renamed", "replaced", "log-removed", "log-renamed"],
)
def test_a_folder_that_vanishes_stops_the_run(
    disturb: Callable[[Path], object], every: int, tmp_path: Path, digits: Path
) -> None:
    plan = small_plan(tmp_path / "run", digits, f"train.checkpoint.every_steps={every}")
    with pytest.raises(StorageError, match=r"gone|removed|another folder|No such file"):
        train(plan, DisturbedStream(plan, 3, disturb))
    # Where there is nothing, or another folder, nothing was put.
    assert not (tmp_path / "run" / EVENTS).exists()


@pytest.mark.parametrize("doomed", ["ckpt", "ckpt/000000002"])
def test_checkpoints_that_others_remove_end_the_run_at_its_next_commit(
    doomed: str, tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected: list[int] = []
    collect = CommitStore._collect
    monkeypatch.setattr(CommitStore, "_collect", lambda s: (collect(s), collected.append(1)))

    def disturb(folder: Path) -> None:
        # Once as the run begins, and once as its first commit is done.
        wait_for(lambda: len(collected) == 2)
        shutil.rmtree(folder / doomed)

    plan = small_plan(tmp_path / "run", digits, "train.checkpoint.every_steps=2")
    with pytest.raises(StorageError, match=r"/ckpt: the checkpoint of step 2 .* is gone"):
        train(plan, DisturbedStream(plan, 3, disturb))
    newest = open_store(plan.job).latest().commit
    # What was in memory is committed, so that no more is lost than others removed.
    assert newest is not None
    assert newest.step == 4
    ended = train(plan)
    assert (ended.state, ended.resumed_from) == ("done", 4)


def test_a_commit_that_others_remove_between_two_attempts_is_missed(tmp_path: Path) -> None:
    store = CommitStore(LocalStorage(tmp_path))
    save(store, 1, 2)
    (tmp_path / "ckpt" / "000000002" / "state.json").unlink()
    store.sweep()  # Moves a torn one aside, and says so.
    ask = NewestCommit(store)
    assert ask() == 1
    save(store, 2, 3)
    assert ask() == 3
    (tmp_path / "ckpt").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="the checkpoint of step 3 of this run is gone"):
        ask()
    # Whoever moves them away and begins anew has decided so.
    assert NewestCommit(CommitStore(LocalStorage(tmp_path)))() is None


def test_a_fence_knows_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as lock:
        lock.fence()()
        (tmp_path / "run").rename(tmp_path / "away")
        for put_back in (None, (tmp_path / "run").mkdir):
            if put_back is not None:
                put_back()
            with pytest.raises(StorageError, match="the run folder is gone, or another one"):
                lock.fence()()
        (tmp_path / "run").rmdir()
        # A copy has the same leases, and is another folder.
        shutil.copytree(tmp_path / "away", tmp_path / "run")
        lock.fence()()
        with pytest.raises(StorageError, match="the run folder is gone, or another one"):
            lock.require_in_place()
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").symlink_to("away")
        lock.require_in_place()
        (tmp_path / "run").unlink()
        (tmp_path / "away").rename(tmp_path / "run")
        lock.require_in_place()


def stopped(folder: Path, digits: Path, at: int = 5) -> Plan:
    """A run that was asked to stop in the middle."""
    plan = small_plan(folder, digits)
    assert train(plan, StoppingStream(plan, at)).state == "preempted"
    (folder / STOP).unlink()
    return plan


@pytest.mark.parametrize("damage", ["removed", "cut", "emptied", "other"])
def test_a_log_that_lost_lines_is_noticed(damage: str, tmp_path: Path, digits: Path) -> None:
    plan = stopped(tmp_path / "run", digits)
    log = plan.job.path / EVENTS
    content = log.read_bytes()
    if damage == "removed":
        log.unlink()
    else:
        other = content[len(content.splitlines(keepends=True)[0]) :] + content
        cut = content[: len(content) // 2]
        log.write_bytes({"cut": cut, "emptied": b"", "other": other}[damage])
    ended = train(plan)
    assert ended.state == "done"
    (note,) = [event.text for event in read_events(log) if event.kind == "log_lost"]
    assert "when step 6 was committed" in note
    assert log_tags(plan.job.path)["event_log"].startswith("incomplete: ")


def test_a_log_that_is_cut_under_way_is_no_secret(tmp_path: Path, digits: Path) -> None:
    plan = small_plan(tmp_path / "run", digits, "train.checkpoint.every_steps=2")
    log = plan.job.path / EVENTS
    ended = train(plan, DisturbedStream(plan, 7, lambda _: os.truncate(log, 300)))
    assert (ended.state, ended.steps) == ("done", 12)
    assert "the log was cut while the run went on" in log_tags(plan.job.path)["event_log"]
    points = metric_history(log, "train/loss")
    assert [point.step for point in points][-4:] == [9, 10, 11, 12]


def test_a_whole_log_is_nothing_to_talk_about(tmp_path: Path, digits: Path) -> None:
    plan = stopped(tmp_path / "run", digits)
    commit = open_store(plan.job).latest().commit
    assert commit is not None
    mark = commit.manifest.log
    assert mark is not None
    lines = (plan.job.path / EVENTS).read_bytes().splitlines(keepends=True)
    assert mark == LogMark(sum(map(len, lines[: mark.lines])), mark.lines)
    # What a crash left unfinished was never part of a commit.
    with (plan.job.path / EVENTS).open("ab") as file:
        file.write(b'{"seq": 99')
    train(plan)
    assert log_tags(plan.job.path) == {}
    assert lost_since(plan.job.path / EVENTS, mark) is None


def test_a_log_that_is_a_link_is_refused(tmp_path: Path, digits: Path) -> None:
    plan = stopped(tmp_path / "run", digits)
    log = plan.job.path / EVENTS
    log.rename(tmp_path / "elsewhere")
    log.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    with pytest.raises(StorageError, match="the event log cannot be opened"):
        train(plan)
    assert (tmp_path / "elsewhere").read_bytes() == before


def test_a_full_disk_is_no_bug(
    tmp_path: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    plan = small_plan(tmp_path / "run", digits)
    with monkeypatch.context() as patch:
        patch.setattr(validation, "write_results", full)
        with pytest.raises(StorageError, match=r"coco_results\.json: No space left .*make room"):
            train(plan)
    shutil.rmtree(plan.job.path / EVALUATION, ignore_errors=True)
    (plan.job.path / EVALUATION).write_text("a file in place of a folder")
    with pytest.raises(StorageError, match=r"/eval: File exists"):
        train(plan)

    def command() -> int:
        try:
            full(tmp_path)
        except OSError as error:
            # As safetensors and others tell it.
            raise RuntimeError("cannot write") from error
        return 0

    assert run_guarded(command) == 71
    assert "No space left on device. Next: make room" in capsys.readouterr().err


def test_a_shortened_run_has_the_best_checkpoint_of_the_whole_one(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 6 and 12 are evaluated as a whole, and step 9, with the best score, cut short."""
    monkeypatch.setattr(session, "build_detector", fickle_detector)
    scores = {6: 0.4, 9: 0.9, 12: 0.3}

    def attach(store, step, metrics):  # type: ignore[no-untyped-def]
        original(store, step, {**metrics, "val/AP": scores[step]})

    original = CommitStore.attach_metrics
    monkeypatch.setattr(CommitStore, "attach_metrics", attach)
    keep = "train.checkpoint={every_steps: 3, keep_last: 2, keep_best: 1}"

    def run(*overrides: str) -> Outcome:
        return train(small_plan(tmp_path / "run", digits, keep, *overrides))

    short = run("train.max_steps=9")
    assert Path(str(short.best_checkpoint)).name == "000000009"
    ended = run()
    assert ended.resumed_from == 9
    assert Path(str(ended.best_checkpoint)).name == "000000006"


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 steps that has ended, without checkpoints; only to be copied."""
    folder = tmp_path_factory.mktemp("one")
    write_data(folder / "data", make_truth(rng(1), images=8))
    dataset = read_coco(folder / "data" / "images", folder / "data" / "val.json").dataset
    return write_run(folder / "runs", "a", dataset, detect(rng(2), dataset, Skill(recall=0.7)))


@pytest.mark.parametrize(
    ("name", "content", "state", "said"),
    [
        ("run.json", None, "done, step 15", "run.json is missing"),
        ("run.json", b"{}", "done, step 15", "run.json is not a sealed JSON file"),
        ("events.jsonl", None, "done, step 15", None),
        ("events.jsonl", b"[" * 100_000 + b"\n", "done, step 15", "1 damaged lines"),
        ("events.jsonl", b'{"seq":1e999,"kind":"","step":0,"time_ms":0}\n', "done", "1 damaged"),
        ("result.json", b'{"state', "unfinished, step 15", "result.json cannot be read"),
        ("result.json", b"[" * 100_000, "unfinished, step 15", "result.json cannot be read"),
        (
            "result.json",
            b'{"state": "done", "steps": 15, "metrics": {"AP": "0.5"}}',
            "unfinished, step 15",
            "result.json cannot be read",
        ),
        (
            "result.json",
            b'{"state": "done", "steps": 15, "metrics": {"AP": NaN}}',
            "unfinished, step 15",
            "result.json cannot be read",
        ),
        (
            "events.jsonl",
            b'{"seq":0,"kind":"metrics","step":3,"time_ms":0,"values":{"val/AP":"NaN"}}\n',
            "done, step 15",
            None,
        ),
    ],
)
def test_damage_of_a_run_is_said_where_runs_are_listed(
    name: str,
    content: bytes | None,
    state: str,
    said: str | None,
    one_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    copy = shutil.copytree(one_run, tmp_path / "runs" / one_run.name)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    assert main(["list", str(copy.parent)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"a: run {state}")
    assert said is None or said in printed + caplog.text
    assert main(["list", str(copy.parent), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert entry["name"] == "a"


def test_a_run_of_a_newer_program_hides_no_other_from_the_list(
    one_run: Path, small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(one_run, tmp_path / "runs" / "a")
    newer = shutil.copytree(small_run, tmp_path / "runs" / "b")
    for manifest in newer.glob("ckpt/*/MANIFEST.json"):
        tree = unseal("manifest", manifest.read_bytes())
        manifest.write_bytes(seal("manifest", {**tree, "format": 2}))
    assert main(["list", str(tmp_path / "runs")]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert (first[:6], second[:6]) == ("a: run", "b: run")
    assert "checkpoint manifest has format 2; this program reads 1" in " ".join(rest)


def test_a_link_in_place_of_the_checkpoints_is_refused_with_its_place(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(small_run, tmp_path / "runs" / "a")
    (copy / "ckpt").rename(tmp_path / "larger-disk")
    (copy / "ckpt").symlink_to(tmp_path / "larger-disk")
    assert main(["list", str(copy.parent)]) == 0
    assert "ckpt: Not a directory" in capsys.readouterr().out
    assert main(["evaluate", str(copy)]) == 71
    assert f"{copy}/ckpt" in capsys.readouterr().err


def test_a_pipe_in_a_run_folder_holds_nobody_up(
    one_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(one_run, tmp_path / "runs" / one_run.name)
    for name in ("events.jsonl", "result.json", "run.json"):
        (copy / name).unlink()
        os.mkfifo(copy / name)
    assert main(["list", str(copy.parent)]) == 0
    assert main(["compare", str(copy)]) == 71
    with pytest.raises(StorageError, match="the event log cannot be opened"):
        EventLog(copy / "events.jsonl")


def test_an_experiment_that_is_not_the_recorded_one_is_told_apart(
    one_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(one_run, tmp_path / "runs" / one_run.name)
    assert main(["compare", str(copy)]) == 0
    assert capsys.readouterr().err == ""
    file = copy / "config" / "resolved.yaml"
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.002"))
    assert main(["compare", str(copy)]) == 0
    said = "train.optimizer.lr: 0.001 in run.json, 0.002 there"
    assert said in capsys.readouterr().err


def test_a_result_that_was_left_behind_is_none(
    one_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(one_run, tmp_path / "runs" / one_run.name)
    log = EventLog(copy / "events.jsonl")
    log.metrics({"train/loss": 1.0}, step=16)
    log.close()
    assert main(["list", str(copy.parent)]) == 0
    assert capsys.readouterr().out.startswith("a: run unfinished, step 16")
