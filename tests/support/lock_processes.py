"""What child processes of the lock tests do; imports no torch, so they start quickly."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.folder_lock import RunLock


def contend(run: Path, pipe: Connection) -> None:
    """For every "go" try to take the lock and say how it went; release it on "release"."""
    lock = None
    while (order := pipe.recv()) != "end":
        if order == "go":
            lock = RunLock(run)
            try:
                lock.acquire()
                pipe.send((lock.token, ""))
            except StorageError as error:
                lock = None
                pipe.send((0, str(error)))
        elif lock is not None:
            lock.release()
            lock = None
            pipe.send("released")
        else:
            pipe.send("had nothing")


def hold(run: Path, pipe: Connection) -> None:
    """Take the lock and sit on it."""
    RunLock(run, heartbeat=0.05).acquire()
    pipe.send(os.getpid())
    time.sleep(600)


def hold_and_fork(run: Path, pipe: Connection) -> None:
    """Take the lock, leave a forked child behind, and sit on it."""
    RunLock(run, heartbeat=0.05).acquire()
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    pipe.send(child)
    time.sleep(600)
