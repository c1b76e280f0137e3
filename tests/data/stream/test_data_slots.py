from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn
from uuid import uuid4

import pytest

from orchestrator.data.stream import slots
from orchestrator.data.stream.slots import slot


def most_at_once(stream: str, count: int, tasks: int, *, expected: int) -> int:
    """How many of ``tasks`` threads held a slot at once; the first wait for ``expected``."""
    lock, holding, most = threading.Lock(), 0, 0
    enough = threading.Event()

    def work() -> None:
        nonlocal holding, most
        with slot(stream, count):
            with lock:
                holding += 1
                most = max(most, holding)
                if holding >= expected:
                    enough.set()
            enough.wait(10)
            time.sleep(0.05)
            with lock:
                holding -= 1

    with ThreadPoolExecutor(tasks) as pool:
        for done in [pool.submit(work) for _ in range(tasks)]:
            done.result()
    return most


def test_no_more_than_the_slots_at_a_time() -> None:
    assert most_at_once(uuid4().hex, 2, tasks=7, expected=2) == 2


def test_streams_do_not_wait_for_each_other() -> None:
    with slot(uuid4().hex, 1), slot(uuid4().hex, 1):
        pass


def test_slot_of_a_killed_process_is_free_again() -> None:
    stream = uuid4().hex
    code = (
        "import sys, time\n"
        "from orchestrator.data.stream.slots import slot\n"
        "with slot(sys.argv[1], 1):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, stream]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        held = threading.Event()

        def take() -> None:
            with slot(stream, 1):
                held.set()

        waiting = threading.Thread(target=take)
        waiting.start()
        assert not held.wait(0.2)
        holder.kill()
        assert held.wait(10)
        waiting.join()


def test_slot_is_free_after_an_error() -> None:
    stream = uuid4().hex
    for _ in range(2):
        with pytest.raises(RuntimeError, match="in the task"), slot(stream, 1):
            raise RuntimeError("in the task")


def test_nobody_waits_without_abstract_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(slots.socket.socket):
        def bind(self, address: object) -> NoReturn:
            raise OSError(errno.ENOENT, "no such file")

    monkeypatch.setattr(slots.socket, "socket", Elsewhere)
    assert most_at_once(uuid4().hex, 1, tasks=3, expected=3) == 3
