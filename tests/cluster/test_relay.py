"""A rank that does not see the run folder, and the actor beside the driver; without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.codec import state_digest
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.cluster import control as control_module
from orchestrator.cluster import relay as relay_module
from orchestrator.cluster.control import Control, RelayedFence, RelayedStorage
from orchestrator.cluster.heartbeat import Beat, Heartbeat
from orchestrator.cluster.relay import Courier, Way
from orchestrator.errors import StorageError
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.run_files import EVENTS, STOP
from orchestrator.tracking.events import EventLog, read_events
from orchestrator.training.trial_decision import await_verdict, write_verdict
from tests.support.commit_scenario import COMMIT_ARGUMENTS, POLICY, scores, states
from tests.support.waiting import wait_for


class _Call:
    def __init__(self, function: Callable[..., Any], stand_in: StandIn) -> None:
        self._function = function
        self._stand_in = stand_in

    def options(self, *, concurrency_group: str) -> _Call:
        return self

    def remote(self, *arguments: Any) -> Any:
        answer: Future[Any] = Future()
        try:
            answer.set_result(self._function(*self._stand_in.on_the_way(arguments)))
        except Exception as error:
            answer.set_exception(error)
        return answer.result


class StandIn:
    """Takes the place of an actor's handle: calls are made at once, in this process."""

    def __init__(self, run_dir: Path, fence: Callable[[], None]) -> None:
        self._control = Control(str(run_dir), fence)
        self.on_the_way: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda words: words

    def __getattr__(self, name: str) -> _Call:
        return _Call(getattr(self._control, name), self)


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunLock]:
    for module in (control_module, relay_module):
        monkeypatch.setattr(module, "ask", lambda answer: answer())
    with RunLock(tmp_path / "driver") as held:
        yield held


@pytest.fixture
def driver(lock: RunLock, tmp_path: Path) -> Path:
    return tmp_path / "driver"


@pytest.fixture
def actor(lock: RunLock, driver: Path) -> StandIn:
    return StandIn(driver, lock.fence())


@pytest.fixture
def storage(actor: StandIn, driver: Path) -> RelayedStorage:
    return RelayedStorage(actor, str(driver))


def test_commits_arrive_as_they_were_made(storage: RelayedStorage, driver: Path) -> None:
    store = CommitStore(storage, **POLICY)
    for step, state in states(9).items():
        store.save_async(state, **COMMIT_ARGUMENTS)
        store.attach_metrics(step, scores(step))
    best = store.best()
    store.close()
    # The driver reads its own disk, and a rank that resumes reads through the actor.
    own = CommitStore(LocalStorage(driver), **POLICY)
    far = CommitStore(storage, **POLICY)
    assert [commit.step for commit in own.commits()] == [6, 8, 9]
    for step in (6, 8, 9):
        digest = state_digest(states(9)[step])
        assert state_digest(own.load(step)) == state_digest(far.load(step)) == digest
    assert best is not None
    assert best.path == str(driver / "ckpt" / "000000006")


def test_bytes_that_change_on_the_way_are_no_commit(
    storage: RelayedStorage, actor: StandIn, driver: Path
) -> None:
    def flip(words: tuple[Any, ...]) -> tuple[Any, ...]:
        # The pieces of a file: its number, and bytes.
        if len(words) == 2 and isinstance(words[1], bytes) and b"step" not in words[1]:
            return words[0], words[1][:-1] + bytes([words[1][-1] ^ 1])
        return words

    actor.on_the_way = flip
    with pytest.raises(StorageError, match="did not arrive as it was sent"):
        CommitStore(storage, **POLICY).save(states(1)[1], **COMMIT_ARGUMENTS)
    assert CommitStore(LocalStorage(driver), **POLICY).latest().commit is None


def test_whoever_lost_the_run_writes_nothing(
    storage: RelayedStorage, actor: StandIn, lock: RunLock, driver: Path, tmp_path: Path
) -> None:
    storage.make_dir("ckpt")
    (tmp_path / "rank0").mkdir()
    lock.advance()
    with pytest.raises(StorageError, match="was shut out"):
        RelayedFence(actor)()
    with pytest.raises(StorageError, match="was shut out"):
        storage.make_dir("eval")
    log = EventLog(tmp_path / "rank0" / EVENTS)
    log.note("start", "late", step=0)
    with pytest.raises(StorageError, match="was shut out"):
        Courier(storage, tmp_path / "rank0", main=True).push()
    assert not (driver / EVENTS).exists()


def test_a_log_is_only_ever_added_to(actor: StandIn, driver: Path) -> None:
    append = actor.append
    append.remote(EVENTS, 0, b"one\ntwo\n")()
    # Whoever knows less than is there, or more, would undo or invent lines.
    for offset in (0, 4, 9):
        with pytest.raises(OSError, match="has 8 bytes; lines were to follow byte"):
            append.remote(EVENTS, offset, b"new\n")()
    # A driver that was killed may have left a part of a line.
    (driver / EVENTS).write_bytes(b"one\ntwo\nthr")
    append.remote(EVENTS, 8, b"three\n")()
    assert (driver / EVENTS).read_bytes() == b"one\ntwo\nthree\n"


def test_what_is_measured_goes_one_way_and_wishes_the_other(
    storage: RelayedStorage, driver: Path, tmp_path: Path
) -> None:
    earlier = EventLog(driver / EVENTS)
    earlier.note("changed", "forced", step=4)
    earlier.close()
    with (driver / EVENTS).open("ab") as file:
        file.write(b'{"seq":')
    (driver / "nonfinite" / "000000003").mkdir(parents=True)
    (driver / "nonfinite" / "000000003" / "report.json").write_text("{}")
    folder = tmp_path / "rank0"
    folder.mkdir()
    with Courier(storage, folder, main=True) as courier:
        assert (folder / "nonfinite" / "000000003" / "report.json").is_file()
        log = EventLog(folder / EVENTS)
        log.metrics({"train/loss": 1.5}, step=5)
        (folder / "eval").mkdir()
        (folder / "eval" / "coco_results.json").write_text("[1]")
        courier.push()
        assert [(e.seq, e.step) for e in read_events(driver / EVENTS)] == [(0, 4), (1, 5)]
        assert (driver / EVENTS).read_bytes() == (folder / EVENTS).read_bytes()
        assert (driver / "eval" / "coco_results.json").read_text() == "[1]"
        # A smaller file in its place, and nothing left over.
        (folder / "eval" / "coco_results.json").write_text("2")
        log.metrics({"train/loss": 1.25}, step=6)
        courier.push()
        assert (driver / "eval" / "coco_results.json").read_text() == "2"
        assert [path.name for path in (driver / "eval").iterdir()] == ["coco_results.json"]

        write_verdict(driver, 6, goes_on=False)
        (driver / STOP).touch()
        assert await_verdict(folder, 6) is False
        wait_for((folder / STOP).exists)
        log.note("end", "last", step=6)
    assert [event.step for event in read_events(driver / EVENTS)] == [4, 5, 6, 6]


def test_evidence_of_every_rank_arrives(
    storage: RelayedStorage, driver: Path, tmp_path: Path
) -> None:
    for rank in (0, 1):
        folder = tmp_path / f"rank{rank}"
        step = folder / "nonfinite" / "000000007"
        step.mkdir(parents=True)
        (step / f"rank{rank}.npz").write_bytes(bytes([rank]) * 10)
        (folder / "eval").mkdir()
        (folder / "eval" / "per_class.csv").write_text(f"{rank}")
        Courier(storage, folder, main=rank == 0).push()
    found = {path.name: path.read_bytes() for path in (driver / "nonfinite/000000007").iterdir()}
    assert found == {"rank0.npz": b"\0" * 10, "rank1.npz": b"\1" * 10}
    assert (driver / "eval" / "per_class.csv").read_text() == "0"


def test_where_the_folder_is_there_it_is_used(actor: StandIn, driver: Path, tmp_path: Path) -> None:
    (driver / ".here-1").touch()
    assert Way(str(driver), ".here-1", actor).is_shared()
    assert Way(str(driver), "", None).is_shared()
    assert not Way(str(driver), ".here-2", actor).is_shared()
    assert not Way(str(tmp_path / "elsewhere"), ".here-1", actor).is_shared()
    assert Way(str(driver), ".here-1", actor).signs(str(driver / "beats")) is None


def test_signs_of_life_reach_the_driver(actor: StandIn, driver: Path, tmp_path: Path) -> None:
    way = Way(str(driver), ".here-2", actor)
    beats = driver / "beats" / "attempt"
    send = way.signs(str(beats))
    with Heartbeat(tmp_path / "nowhere", 3, 6.0, node="n1", send=send):
        beat = wait_for(lambda: Beat.read(beats / "rank3.json"))
    assert (beat.node, beat.count) == ("n1", 1)
    assert list(beats.iterdir()) == []
    assert not (tmp_path / "nowhere").exists()
