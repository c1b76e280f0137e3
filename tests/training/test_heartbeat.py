"""Signs of life: who gives them, who stops to, and what is done about it."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from orchestrator.training.heartbeat import Beat, HangWatch, Heartbeat

TIMEOUT = 3.0


def lives(folder: Path, rank: int, what: str, ready: Any) -> None:
    """A rank: waits for ever, or locks its interpreter."""
    with Heartbeat(folder, rank, TIMEOUT):
        ready.set()
        if what == "locks":
            time.sleep(0.2)
            ctypes.PyDLL(None).sleep(600)  # Unlike CDLL, keeps the interpreter lock.
        time.sleep(600)


@contextmanager
def rank(folder: Path, number: int, what: str = "waits") -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=lives, args=(folder, number, what, ready))
    process.start()
    try:
        assert ready.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


def never(beat: Beat) -> None:
    raise AssertionError(f"{beat} is a process of this machine")


def wait_for(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["stopped", "locks"])
def test_a_rank_that_stands_still_is_killed_in_time(how: str, tmp_path: Path) -> None:
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


def test_an_end_is_not_a_standstill(tmp_path: Path) -> None:
    folder = tmp_path / "beats"
    with HangWatch(folder, TIMEOUT, never) as watch:
        with Heartbeat(folder, 0, TIMEOUT):
            wait_for(lambda: list(folder.glob("*.json")), 10)
        assert list(folder.glob("*.json")) == []
        time.sleep(TIMEOUT)
    assert watch.hung == []


def test_a_rank_of_another_machine_is_killed_there(tmp_path: Path) -> None:
    folder = tmp_path / "beats"
    killed: list[Beat] = []
    with Heartbeat(folder, 0, 60.0, node="n1"):
        path = folder / "rank0.json"
        wait_for(lambda: Beat.read(path), 10)
        own = Beat.read(path)
        assert own is not None
        far = dataclasses.replace(own.process, boot="another")
        text = path.read_text().replace(own.process.boot, "another")
        path.write_text(text)
        with HangWatch(folder, TIMEOUT, killed.append) as watch:
            wait_for(lambda: watch.hung, 5 * TIMEOUT)
    assert [(beat.process, beat.node) for beat in killed] == [(far, "n1")]


def test_half_a_file_is_no_sign(tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    assert Beat.read(path) is None
    path.write_text('{"process": {"host"')
    assert Beat.read(path) is None
