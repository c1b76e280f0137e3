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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster import heartbeat
from orchestrator.cluster.heartbeat import CONTROLLER, Beat, HangWatch, Heartbeat
from orchestrator.config.schema import ClusterConfig
from orchestrator.storage.lease import Holder
from orchestrator.training.pulse import Pulse, pulse
from tests.support.waiting import wait_for

TIMEOUT = 3.0


@pytest.fixture(autouse=True)
def _no_steps_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have trained in this process."""
    monkeypatch.setattr(heartbeat, "pulse", Pulse())


def lives(folder: Path, rank: int | str, what: str, timeout: float, ready: Any) -> None:
    """A rank: waits for ever, or locks its interpreter."""
    with Heartbeat(folder, rank, timeout):
        ready.set()
        if what == "locks":
            time.sleep(0.2)
            ctypes.PyDLL(None).sleep(600)  # Unlike CDLL, keeps the interpreter lock.
        time.sleep(600)


@contextmanager
def rank(
    folder: Path, number: int | str, what: str = "waits", timeout: float = TIMEOUT
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


def ranks(*states: tuple[int, int, bool], began: int = 0) -> list[Beat]:
    """Signs of life of ranks by steps done, marks and whether they move.

    ``began`` is the step that this start goes on from.
    """
    process = Holder.this_process()
    return [
        Beat(
            dataclasses.replace(process, pid=number),
            None,
            0,
            step,
            "step",
            marks,
            moving,
            step - began,
        )
        for number, (step, marks, moving) in enumerate(states)
    ]


def watched(timeout: float = 30.0) -> heartbeat._Progress:
    progress = heartbeat._Progress(timeout)
    progress.restart(0.0)
    return progress


def test_until_the_first_step_there_are_ten_timeouts() -> None:
    progress = watched()
    starting = ranks((7, 1, False), (7, 1, False), began=7)
    assert progress.look(starting, 1.0) is None
    assert progress.look(starting, 300.0) is None
    assert progress.look(starting, 302.0) == pytest.approx(301.0)


def test_to_go_on_from_a_commit_is_no_step() -> None:
    """A rank says step 0 until it has read the commit of step 7, and then waits for data."""
    progress = watched()
    assert progress.look(ranks((0, 1, False), (0, 1, False)), 1.0) is None
    resumed = ranks((7, 2, False), (7, 2, False), began=7)
    assert progress.look(resumed, 2.0) is None
    assert progress.look(resumed, 300.0) is None
    assert progress.look(resumed, 303.0) == pytest.approx(301.0)


def test_steps_of_a_start_are_told_from_those_before_it() -> None:
    seen = Pulse()
    seen.begin()
    seen.mark("waiting for a batch", 7)
    assert (seen.step, seen.taken) == (7, 0)
    seen.mark("step", 7)
    seen.mark("waiting for a batch", 9)
    assert (seen.step, seen.taken) == (9, 2)
    seen.begin()
    seen.mark("waiting for a batch", 8)
    assert (seen.step, seen.taken) == (8, 0)


def test_ranks_that_wait_for_each_other_are_noticed_within_the_timeout() -> None:
    progress = watched()
    for second in range(10):
        assert (
            progress.look(ranks((second, second, False), (second, second, False)), second) is None
        )
    cut = ranks((9, 9, False), (9, 9, False))
    assert progress.look(cut, 24.0) is None
    # The last progress was seen at 9, and a sign of life is a sixth of the timeout old at most.
    assert progress.look(cut, 24.5) == pytest.approx(15.5)
    # Whoever has been killed is not waited for.
    assert progress.look([], 100.0) is None


def test_a_rank_that_computes_or_may_take_long_is_waited_for() -> None:
    progress = watched()
    for second in range(3):
        progress.look(ranks((second, second, False), (second, second, False)), second)
    slow = ranks((2, 2, False), (2, 2, True))
    assert [progress.look(slow, second) for second in range(10, 900, 10)] == [None] * 89
    assert progress.look(ranks((2, 2, False), (2, 2, False)), 890.0 + 15.5) is not None


def test_steps_that_are_slow_by_themselves_make_it_patient() -> None:
    progress = watched()
    for step in range(4):
        assert progress.look(ranks((step, step, False)), 12.0 * step) is None
    # Four times the longest pause after the first step.
    assert progress.look(ranks((3, 3, False)), 36.0 + 48.0) is None
    assert progress.look(ranks((3, 3, False)), 36.0 + 48.5) == pytest.approx(48.5)


def stands(folder: Path, number: int, timeout: float, ready: Any) -> None:
    """A rank that does two steps, and then waits as in a collective."""
    with Heartbeat(folder, number, timeout):
        pulse.mark("step", 1)
        ready.wait()
        time.sleep(timeout / 2)
        pulse.mark("step", 2)
        time.sleep(timeout / 2)
        pulse.mark("step", 3)
        time.sleep(600)


def test_ranks_that_get_no_further_are_all_killed(tmp_path: Path) -> None:
    folder = tmp_path / "beats"
    context = multiprocessing.get_context("forkserver")
    ready = context.Barrier(2)
    both = [
        context.Process(target=stands, args=(folder, number, TIMEOUT, ready)) for number in (0, 1)
    ]
    for process in both:
        process.start()
    with HangWatch(folder, TIMEOUT, never) as watch:
        for process in both:
            process.join(60)
    assert [process.exitcode for process in both] == [-signal.SIGKILL] * 2
    assert len(watch.hung) == 2
    for line in watch.hung:
        assert " got no further for " in line
        assert line.endswith(" s (step, 3 steps done) and was killed")


def test_a_controller_that_brings_up_nobody_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = watched()
    assert progress.look([], 300.0) is None
    assert progress.look([], 301.0) == pytest.approx(301.0)
    assert watched(3.0).look([], 120.0) is None
    monkeypatch.setattr(heartbeat, "_FIRST_PATIENCE", 0.5)
    monkeypatch.setattr(heartbeat, "_START_SECONDS", 0.0)
    folder = tmp_path / "beats"
    with rank(folder, CONTROLLER) as controller, HangWatch(folder, TIMEOUT, never) as watch:
        controller.join(60)
        assert controller.exitcode == -signal.SIGKILL
        wait_for(lambda: watch.hung, 5)
    (line,) = watch.hung
    assert line.startswith(f"controller (process {controller.pid} on ")
    assert " has had no worker begin for " in line


def test_the_time_that_a_thread_computes_is_seen_by_another() -> None:
    seen = Pulse()
    assert seen.seconds() == 0.0
    seen.mark("step", 1)
    before = seen.seconds()
    sum(range(2_000_000))
    assert 0.0 < seen.seconds() - before < 60.0
    with seen.waiting("commit"):
        assert (seen.phase, seen.patient) == ("commit", True)
        seen.mark("evaluation")
        assert not seen.patient
    assert (seen.phase, seen.patient, seen.step) == ("step", False, 1)


#: Asks for the time of a thread that has ended, once the C library has given back its memory.
ENDED = """
import threading
from orchestrator.training.pulse import Pulse

seen = Pulse()

def run(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

run(lambda: seen.mark("step", 1))
threading.stack_size(64 * 2**20)
for _ in range(8):
    run(lambda: None)
print(seen.seconds())
"""


def test_a_thread_that_has_ended_computes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDED], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, "0.0"), done.stderr
