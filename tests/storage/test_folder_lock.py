"""One process per run folder: races, death, other machines, fencing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.errors import StorageError
from orchestrator.storage import lease as leases
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.lease import Holder
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.sealed import seal, unseal
from tests.support.child_processes import CHILDREN, start_server
from tests.support.commit_scenario import COMMIT_ARGUMENTS, states
from tests.support.lock_processes import contend, hold, hold_and_fork
from tests.support.waiting import wait_for

IN_USE = r"in use by process \d+ on .+, since \d{4}-.*Two processes must not write"


@contextmanager
def child(target: Any, run: Path) -> Iterator[tuple[Any, Any]]:
    start_server()
    ours, theirs = CHILDREN.Pipe()
    process = CHILDREN.Process(target=target, args=(run, theirs))
    process.start()
    try:
        yield process, ours
    finally:
        process.kill()
        process.join()


def lease_of(run: Path) -> Path:
    (lease,) = run.glob("lock/lease-*.json")
    return lease


def rewrite_lease(run: Path, **fields: Any) -> None:
    lease = lease_of(run)
    lease.write_bytes(seal("lease", {**unseal("lease", lease.read_bytes()), **fields}))


def leave_behind(run: Path, **fields: Any) -> int:
    """A lease that was not given back, as a killed process of another machine leaves it."""
    lock = RunLock(run, heartbeat=0.05)
    lock.acquire()
    lock._stop.set()
    assert lock._beating is not None
    lock._beating.join()
    lock._forget()
    rewrite_lease(run, **fields)
    return lock.token


ELSEWHERE = {"host": "node-7", "boot": "another-kernel", "pid": 4321}


def test_the_second_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        assert lock.token == 1
        with pytest.raises(StorageError, match=IN_USE) as caught:
            RunLock(tmp_path).acquire()
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
        assert str(tmp_path) in str(caught.value)
    with RunLock(tmp_path) as lock:
        assert lock.token == 2


def test_releasing_twice_or_without_holding_does_nothing(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        raise ZeroDivisionError
    RunLock(tmp_path).acquire()


def test_of_two_processes_exactly_one_wins_fifty_times(tmp_path: Path) -> None:
    with child(contend, tmp_path) as (_, one), child(contend, tmp_path) as (_, two):
        for number in range(50):
            pipes = [one, two] if number % 2 else [two, one]
            for pipe in pipes:
                pipe.send("go")
            answers = [pipe.recv() for pipe in (one, two)]
            tokens = [token for token, _ in answers if token]
            assert tokens == [number + 1]
            (refusal,) = [text for token, text in answers if not token]
            assert "in use by" in refusal
            for pipe in (one, two):
                pipe.send("release")
            assert sorted(pipe.recv() for pipe in (one, two)) == ["had nothing", "released"]
        for pipe in (one, two):
            pipe.send("end")
    assert len(list((tmp_path / "lock").iterdir())) == 3


@pytest.mark.parametrize("number", range(3))
def test_a_killed_holder_is_replaced_at_once(number: int, tmp_path: Path) -> None:
    with child(hold, tmp_path) as (process, pipe):
        pid = pipe.recv()
        with pytest.raises(StorageError, match=rf"process {pid} on"):
            RunLock(tmp_path).acquire()
        os.kill(pid, signal.SIGKILL)
        process.join()
        started = time.monotonic()
        with RunLock(tmp_path) as lock:
            assert lock.token == 2
        assert time.monotonic() - started < 5.0


def test_a_stopped_holder_keeps_its_lock(tmp_path: Path) -> None:
    with child(hold, tmp_path) as (_, pipe):
        pid = pipe.recv()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)
        with pytest.raises(StorageError, match=rf"process {pid} on"):
            RunLock(tmp_path, patience=0.1).acquire()
        os.kill(pid, signal.SIGCONT)


def test_a_forked_child_does_not_outlive_its_parent_with_the_lock(tmp_path: Path) -> None:
    with child(hold_and_fork, tmp_path) as (process, pipe):
        grandchild = pipe.recv()
        try:
            with pytest.raises(StorageError, match=IN_USE):
                RunLock(tmp_path).acquire()
            process.kill()
            process.join()
            os.kill(grandchild, 0)
            with RunLock(tmp_path) as lock:
                assert lock.token == 2
        finally:
            os.kill(grandchild, signal.SIGKILL)


class TestAnotherMachine:
    """A lease whose holder this kernel knows nothing of is watched."""

    def test_a_silent_one_is_taken_over_after_the_patience(self, tmp_path: Path) -> None:
        leave_behind(tmp_path, **ELSEWHERE)
        started = time.monotonic()
        with RunLock(tmp_path, heartbeat=0.1, patience=0.5) as lock:
            assert lock.token == 2
            assert 0.5 <= time.monotonic() - started < 5.0

    def test_a_living_one_is_never_robbed(self, tmp_path: Path) -> None:
        leave_behind(tmp_path, **ELSEWHERE)
        (beat,) = tmp_path.glob("lock/beat-*")
        stop = threading.Event()

        def live() -> None:
            count = 100
            while not stop.wait(0.1):
                count += 1
                beat.write_bytes(b"%d" % count)

        thread = threading.Thread(target=live)
        thread.start()
        try:
            with pytest.raises(StorageError, match=r"in use by process 4321 on node-7, since"):
                RunLock(tmp_path, heartbeat=0.1, patience=20.0).acquire()
        finally:
            stop.set()
            thread.join()

    def test_one_that_gave_it_back_is_not_waited_for(self, tmp_path: Path) -> None:
        with RunLock(tmp_path):
            pass
        rewrite_lease(tmp_path, **ELSEWHERE)
        started = time.monotonic()
        with RunLock(tmp_path, patience=60.0):
            assert time.monotonic() - started < 5.0

    def test_a_lease_cut_off_while_written_is_watched_too(self, tmp_path: Path) -> None:
        leave_behind(tmp_path)
        lease = lease_of(tmp_path)
        lease.write_bytes(lease.read_bytes()[:20])
        started = time.monotonic()
        with RunLock(tmp_path, heartbeat=0.1, patience=0.4) as lock:
            assert lock.token == 2
        assert time.monotonic() - started >= 0.4

    def test_two_that_both_think_it_dead_do_not_both_win(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Two machines whose mounts do not share flock.
        monkeypatch.setattr(fcntl, "flock", lambda *_: None)
        leave_behind(tmp_path, **ELSEWHERE)
        barrier = threading.Barrier(2)
        locks = [RunLock(tmp_path, heartbeat=0.1, patience=0.3) for _ in range(2)]
        outcomes: list[str] = []

        def take(lock: RunLock) -> None:
            barrier.wait()
            try:
                lock.acquire()
                outcomes.append("won")
            except StorageError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("won") == 1
        assert sum("in use by" in text for text in outcomes) == 1
        for lock in locks:
            lock.release()

    def test_whoever_claims_a_number_given_up_for_a_higher_one_loses(self, tmp_path: Path) -> None:
        late = RunLock(tmp_path)
        with RunLock(tmp_path) as lock:
            lock.advance()
            lock.advance()
            assert lock.token == 3
            with pytest.raises(StorageError, match="in use by"):
                late._claim(2)
            assert [path.name for path in tmp_path.glob("lock/lease-*")] == ["lease-000000003.json"]
            lock.fence()()


class TestWithoutFlock:
    """File systems that have no flock: the process itself is looked at."""

    @pytest.fixture(autouse=True)
    def no_flock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise OSError(errno.EOPNOTSUPP, "not supported")

        monkeypatch.setattr(fcntl, "flock", refuse)

    def test_a_running_holder_is_refused(self, tmp_path: Path) -> None:
        with RunLock(tmp_path), pytest.raises(StorageError, match=IN_USE):
            RunLock(tmp_path).acquire()

    def test_a_dead_one_is_replaced_at_once(self, tmp_path: Path) -> None:
        with child(hold, tmp_path) as (process, pipe):
            pid = pipe.recv()
            process.kill()
            process.join()
            assert json.loads(lease_of(tmp_path).read_text())["pid"] == pid
            started = time.monotonic()
            with RunLock(tmp_path) as lock:
                assert lock.token == 2
            assert time.monotonic() - started < 5.0

    def test_another_process_with_its_number_is_not_it(self, tmp_path: Path) -> None:
        leave_behind(tmp_path, started=17)
        with RunLock(tmp_path) as lock:
            assert lock.token == 2


def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    """Linux keeps 15 bytes of it, which may end within a letter."""
    name = Path("/proc/self/comm")
    before = name.read_bytes()
    try:
        name.write_bytes("тренировка".encode()[:15])
        assert Holder.this_process().is_here()
        with RunLock(tmp_path):
            pass
    finally:
        name.write_bytes(before.strip())


def test_who_hides_is_not_taken_for_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``/proc`` may be mounted so that users do not see each other's processes."""
    holder = Holder.this_process()
    ended = replace(holder, pid=2**22 + 1)  # Linux gives no process a number beyond 2**22.
    assert (holder.is_here(), holder.ended_here(), ended.ended_here()) == (True, False, True)
    real = leases._PROC
    for entry in ("sys/kernel/random", "self/ns"):
        (tmp_path / entry).mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").symlink_to(real / "sys/kernel/random/boot_id")
    (tmp_path / "self/ns/pid").symlink_to(real / "self/ns/pid")
    monkeypatch.setattr(leases, "_PROC", tmp_path)
    assert (holder.is_here(), holder.ended_here(), ended.ended_here()) == (False, False, True)


class TestFencing:
    def test_a_newer_attempt_shuts_out_the_older(self, tmp_path: Path) -> None:
        with RunLock(tmp_path) as lock:
            first = lock.fence()
            first()
            second = pickle.loads(pickle.dumps(lock.advance()))
            second()
            with pytest.raises(StorageError, match=r"token 1\) was shut out.*token 2\)"):
                first()

    def test_a_holder_that_was_taken_over_cannot_commit(self, tmp_path: Path) -> None:
        ghost = RunLock(tmp_path, heartbeat=0.05)
        ghost.acquire()
        fence = ghost.fence()
        store = CommitStore(LocalStorage(tmp_path), fence=fence)
        store.save(states(1)[1], **COMMIT_ARGUMENTS)
        # Its machine was cut off from the network for longer than the patience of the next one.
        ghost._stop.set()
        rewrite_lease(tmp_path, **ELSEWHERE)
        fcntl.flock(ghost._descriptor or -1, fcntl.LOCK_UN)
        with RunLock(tmp_path, heartbeat=0.05, patience=0.2) as heir:
            assert heir.token == 2
            with pytest.raises(StorageError, match="was shut out"):
                store.save(states(2)[2], **COMMIT_ARGUMENTS)
            with pytest.raises(StorageError, match="was shut out"):
                ghost.advance()
            assert [commit.step for commit in CommitStore(LocalStorage(tmp_path)).commits()] == [1]
            CommitStore(LocalStorage(tmp_path), fence=heir.fence()).save(
                states(2)[2], **COMMIT_ARGUMENTS
            )
        ghost._forget()

    def test_the_heartbeat_follows_the_newest_token(self, tmp_path: Path) -> None:
        with RunLock(tmp_path, heartbeat=0.02) as lock:
            lock.advance()
            beat = tmp_path / "lock" / "beat-000000002"
            seen: set[bytes] = set()
            wait_for(lambda: seen.add(beat.read_bytes()) or len(seen) >= 3, every=0.01)


def test_nothing_grows(tmp_path: Path) -> None:
    threads = threading.active_count()
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(30):
        with RunLock(tmp_path):
            pass
    assert len(list((tmp_path / "lock").iterdir())) == 3
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot lock the run folder"):
        RunLock(tmp_path / "file" / "run").acquire()
