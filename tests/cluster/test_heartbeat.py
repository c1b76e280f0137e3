"""Signs of life: who gives them, who stops to, and what is done about it."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import heartbeat
from orchestrator.cluster.heartbeat import Beat, HangWatch, Heartbeat
from orchestrator.config.schema import ClusterConfig

TIMEOUT = 3.0


def lives(folder: Path, rank: int, what: str, timeout: float, ready: Any) -> None:
    """A rank: waits for ever, or locks its interpreter."""
    with Heartbeat(folder, rank, timeout):
        ready.set()
        if what == "locks":
            time.sleep(0.2)
            ctypes.PyDLL(None).sleep(600)  # Unlike CDLL, keeps the interpreter lock.
        time.sleep(600)


@contextmanager
def rank(
    folder: Path, number: int, what: str = "waits", timeout: float = TIMEOUT
) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=lives, args=(folder, number, what, timeout, ready))
    process.start()
    try:
        assert ready.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


def never(beat: Beat, spare_starved: bool) -> bool:
    raise AssertionError(f"{beat} is a process of this machine")


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["stopped", "locks"])
def test_a_rank_that_stands_still_is_killed_in_time(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What else this machine does now must not decide.
    monkeypatch.setattr(heartbeat, "_is_starved", lambda pid: False)
    folder = tmp_path / "beats"
    with (
        rank(folder, 0) as healthy,
        rank(folder, 1, "locks" if how == "locks" else "waits") as still,
        HangWatch(folder, TIMEOUT, never) as watch,
    ):
        wait_for(lambda: len(list(folder.glob("*.json"))) == 2, 30)
        time.sleep(TIMEOUT / 4)
        if how == "stopped":
            assert still.pid is not None
            os.kill(still.pid, signal.SIGSTOP)
        still.join(5 * TIMEOUT)
        assert still.exitcode == -signal.SIGKILL
        wait_for(lambda: watch.hung, 5)
        assert healthy.is_alive()
    (line,) = watch.hung
    assert line.startswith(f"rank1 (process {still.pid} on ")
    assert line.endswith("s and was killed")
    assert float(line.split(" for ")[1].split()[0]) <= TIMEOUT
    assert not folder.exists()


@pytest.mark.chaos
def test_stopped_ranks_are_noticed_within_the_default_timeout(
    tmp_path: Path, record_property: Any
) -> None:
    timeout = ClusterConfig().hang_timeout
    assert timeout == 30.0
    folder = tmp_path / "beats"
    seconds: list[float] = []
    with ExitStack() as stack:
        ranks = [stack.enter_context(rank(folder, n, timeout=timeout)) for n in range(4)]
        stack.enter_context(HangWatch(folder, timeout, never))
        wait_for(lambda: len(list(folder.glob("*.json"))) == len(ranks), 60)
        stopped = []
        for process in ranks:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            stopped.append(time.monotonic())
            time.sleep(timeout / 18)  # Three of them between two signs of life.
        for process, since in zip(ranks, stopped, strict=True):
            process.join(5 * timeout)
            seconds.append(time.monotonic() - since)
    print(f"noticed after {', '.join(f'{s:.1f}' for s in seconds)} s")
    record_property("seconds", seconds)
    assert [process.exitcode for process in ranks] == [-signal.SIGKILL] * len(ranks)
    assert max(seconds) <= timeout


def test_an_end_is_not_a_standstill(tmp_path: Path) -> None:
    folder = tmp_path / "beats"
    with HangWatch(folder, TIMEOUT, never) as watch:
        with Heartbeat(folder, 0, TIMEOUT):
            wait_for(lambda: list(folder.glob("*.json")), 10)
        assert list(folder.glob("*.json")) == []
        time.sleep(TIMEOUT)
    assert watch.hung == []


def test_a_rank_of_another_machine_is_killed_there_and_starving_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_STARVED_PATIENCE", 1.5)
    folder = tmp_path / "beats"
    killed: list[Beat] = []
    asked: list[bool] = []
    # Its second sign of life would come after 100 s, and undo what is written here.
    with Heartbeat(folder, 0, 600.0, node="n1"):
        path = folder / "rank0.json"
        wait_for(lambda: Beat.read(path), 10)
        own = Beat.read(path)
        assert own is not None
        far = dataclasses.replace(own.process, boot="another")
        text = path.read_text().replace(own.process.boot, "another")
        path.write_text(text)

        def kill(beat: Beat, spare_starved: bool) -> bool:
            asked.append(spare_starved)
            if not spare_starved:
                killed.append(beat)
            return not spare_starved

        with HangWatch(folder, TIMEOUT, kill) as watch:
            wait_for(lambda: watch.hung, 5 * TIMEOUT)
    assert [(beat.process, beat.node) for beat in killed] == [(far, "n1")]
    # It is spared as starved again and again, and then no more.
    assert asked[:2] == [True, True]
    assert asked[-1] is False


def test_a_rank_of_this_machine_is_not_spared_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def starved(pid: int) -> bool:
        looks.append(pid)
        time.sleep(TIMEOUT / 2)  # Longer than the watch may be held up by anything else.
        return True

    monkeypatch.setattr(heartbeat, "_STARVED_PATIENCE", 1.5)
    monkeypatch.setattr(heartbeat, "_is_starved", starved)
    path = tmp_path / "beats" / "rank0.json"
    with rank(path.parent, 0) as still, HangWatch(path.parent, TIMEOUT, never):
        wait_for(lambda: Beat.read(path), 30)
        assert still.pid is not None
        os.kill(still.pid, signal.SIGSTOP)
        still.join(20 * TIMEOUT)
        assert still.exitcode == -signal.SIGKILL
    assert looks == [still.pid] * len(looks)
    assert len(looks) >= 2


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="this kernel does not say who waits"
)
def test_who_waits_for_a_processor_is_told_from_who_stands_still() -> None:
    processor = min(os.sched_getaffinity(0))
    spin = f"import os; os.sched_setaffinity(0, {{{processor}}})\nwhile True: pass"
    crowd = [subprocess.Popen([sys.executable, "-S", "-c", spin]) for _ in range(12)]
    try:
        wait_for(lambda: all(os.sched_getaffinity(p.pid) == {processor} for p in crowd), 60)
        # A twelfth of one processor each.
        assert heartbeat._is_starved(crowd[0].pid)
        crowd[0].send_signal(signal.SIGSTOP)
        assert not heartbeat._is_starved(crowd[0].pid)
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert not heartbeat._is_starved(crowd[0].pid)


def test_half_a_file_is_no_sign(tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    assert Beat.read(path) is None
    path.write_text('{"process": {"host"')
    assert Beat.read(path) is None
