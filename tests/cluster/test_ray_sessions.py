"""What ended Rays have left is removed, and nothing of one that works."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.cluster.ray_sessions import KEPT, remove_ended_sessions, remove_session

HOUR = 3600.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def session(folder: Path, number: int, age: float = HOUR) -> Path:
    """One with a log and a socket that nobody listens at, as a killed Ray leaves it."""
    made = folder / f"session_2026-11-30_00-00-{number:02}_000000_{number}"
    (made / "sockets").mkdir(parents=True)
    (made / "logs").mkdir()
    (made / "logs" / "raylet.out").write_text("started\n")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(made / "sockets" / "raylet"))
    # The higher the number, the newer.
    changed = time.time() - age + number
    os.utime(made, (changed, changed))
    return made


def left(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def test_the_newest_are_kept(folder: Path) -> None:
    made = [session(folder, number) for number in range(KEPT + 2)]
    (folder / "ray_current_cluster").write_text("")
    remove_ended_sessions(folder)
    assert left(folder) == {*(each.name for each in made[2:]), "ray_current_cluster"}


def test_one_that_works_is_kept_whoever_started_it(folder: Path) -> None:
    working, starting, ended = (session(folder, number) for number in range(3))
    os.utime(starting)
    for number in range(10, 10 + KEPT):
        session(folder, number)
    raylet = working / "sockets" / "raylet"
    raylet.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(raylet))
        server.listen()
        changed = time.time() - HOUR
        os.utime(working, (changed, changed))
        remove_ended_sessions(folder)
    assert working.exists()
    assert starting.exists()
    assert not ended.exists()


def test_links_and_files_are_not_sessions(folder: Path) -> None:
    for number in range(KEPT):
        session(folder, number)
    elsewhere = folder / "photos"
    elsewhere.mkdir()
    (folder / "session_latest").symlink_to(elsewhere)
    (folder / "session_notes").write_text("")
    remove_ended_sessions(folder)
    assert {"photos", "session_latest", "session_notes"} <= left(folder)


def test_the_link_to_the_newest_goes_with_it(folder: Path) -> None:
    older, newer = session(folder, 0), session(folder, 1)
    (folder / "session_latest").symlink_to(newer)
    remove_session(older)
    assert left(folder) == {newer.name, "session_latest"}
    remove_session(newer)
    assert left(folder) == set()
