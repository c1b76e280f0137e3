"""The event log: what a crash, a full disk and a resume leave of it."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import StorageError
from orchestrator.tracking.events import (
    LOG_LOST,
    EventLog,
    Point,
    lost_since,
    metric_history,
    read_events,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "events.jsonl"


def ticking(start: float = 1000.0):
    """A clock that moves on by a second a call."""
    ticks = itertools.count()
    return lambda: start + next(ticks)


def test_lines_hold_what_was_logged(path):
    log = EventLog(path, clock=ticking())
    log.metrics({"train/loss": 1.5, "train/lr": 0.1}, step=10)
    log.note("resume", 'from "commit" 7\nand on', step=7)
    log.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "seq": 0,
            "kind": "metrics",
            "step": 10,
            "time_ms": 1000000,
            "values": {"train/loss": 1.5, "train/lr": 0.1},
        },
        {
            "seq": 1,
            "kind": "resume",
            "step": 7,
            "time_ms": 1001000,
            "text": 'from "commit" 7\nand on',
        },
    ]


def test_events_are_read_from_any_earlier_end(path):
    log = EventLog(path)
    for step in range(5):
        log.metrics({"loss": float(step)}, step=step)
    events = list(read_events(path))
    assert [event.seq for event in events] == [0, 1, 2, 3, 4]
    assert events[-1].end == path.stat().st_size
    for i, event in enumerate(events):
        assert list(read_events(path, event.end)) == events[i + 1 :]
    log.close()


def test_no_log_has_no_events(path):
    assert list(read_events(path)) == []
    assert metric_history(path, "loss") == []


def test_values_that_json_cannot_hold(path):
    log = EventLog(path)
    log.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1 + 0.2}, step=1)
    log.close()

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    values = json.loads(path.read_text(), parse_constant=refuse)["values"]
    assert values == {"a": "NaN", "b": "Infinity", "c": "-Infinity", "d": 0.1 + 0.2}
    (event,) = read_events(path)
    assert math.isnan(event.values["a"])
    assert (event.values["b"], event.values["c"]) == (math.inf, -math.inf)
    assert event.values["d"] == 0.1 + 0.2


def test_file_names_that_are_no_unicode_can_be_noted(path):
    log = EventLog(path)
    log.note("replaced", os.fsdecode(b"im\xff\xe9ge.jpg"), step=0)
    log.close()
    assert next(read_events(path)).text == os.fsdecode(b"im\xff\xe9ge.jpg")


def test_repeated_steps_keep_their_first_value_and_time(path):
    log = EventLog(path, clock=ticking(1000))
    for step in (10, 20, 30):
        log.metrics({"train/loss": step / 10, "train/images_per_s": 5.0}, step=step)
    log.close()
    before = path.read_bytes()

    # Killed behind step 30, resumed from the commit at step 10.
    log = EventLog(path, clock=ticking(5000))
    log.metrics({"train/loss": 2.0, "train/images_per_s": 7.0}, step=20)
    log.metrics({"train/loss": 3.0, "train/images_per_s": 7.0}, step=30)
    assert path.read_bytes() == before
    log.metrics({"train/loss": 4.0, "train/images_per_s": 7.0}, step=40)
    log.close()
    assert metric_history(path, "train/loss") == [
        Point(10, 1.0, 1000000),
        Point(20, 2.0, 1001000),
        Point(30, 3.0, 1002000),
        Point(40, 4.0, 5000000),
    ]
    assert [point.value for point in metric_history(path, "train/images_per_s")] == [5, 5, 5, 7]
    assert [event.seq for event in read_events(path)] == [0, 1, 2, 3]


def test_only_the_new_metrics_of_a_step_are_added(path):
    log = EventLog(path)
    log.metrics({"train/loss": 1.0}, step=10)
    log.metrics({"train/loss": 9.0, "val/AP": 0.5}, step=10)
    log.close()
    assert [event.values for event in read_events(path)] == [{"train/loss": 1.0}, {"val/AP": 0.5}]


def test_notes_are_not_merged(path):
    for _ in range(2):
        log = EventLog(path)
        log.note("resume", "from commit 4", step=4)
        log.close()
    assert [event.seq for event in read_events(path)] == [0, 1]


def test_a_note_cannot_pass_for_metrics(path):
    log = EventLog(path)
    with pytest.raises(ValueError, match="not the kind of a note"):
        log.note("metrics", "0.5", step=1)
    log.close()


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_cut_anywhere_all_whole_lines_survive(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "events.jsonl"
    log = EventLog(path, clock=ticking())
    for step in range(6):
        log.metrics({"loss": step / 7}, step=step)
    log.close()
    whole = path.read_bytes()
    events = list(read_events(path))
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])

    survivors = [event for event in events if event.end <= cut]
    assert list(read_events(path)) == survivors
    log = EventLog(path, clock=ticking())
    for step in range(6):
        log.metrics({"loss": step / 7}, step=step)
    log.close()
    again = list(read_events(path))
    assert again[: len(survivors)] == survivors
    assert [(e.seq, e.step, e.values) for e in again] == [(e.seq, e.step, e.values) for e in events]


def test_a_damaged_line_is_passed_over_and_its_metric_logged_again(path):
    log = EventLog(path)
    for step in range(3):
        log.metrics({"loss": float(step)}, step=step)
    log.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b"\0" * (len(lines[1]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    assert [event.step for event in read_events(path)] == [0, 2]
    log = EventLog(path)
    for step in range(3):
        log.metrics({"loss": float(step)}, step=step)
    log.close()
    assert [(event.seq, event.step) for event in read_events(path)] == [(0, 0), (2, 2), (3, 1)]


_WRITER = """
import sys
from pathlib import Path
from orchestrator.tracking.events import EventLog
log = EventLog(Path(sys.argv[1]))
for step in range(10**9):
    log.metrics({"loss": step / 3}, step=step)
    if step == 200:
        print("going", flush=True)
"""


def test_kill_nine_loses_no_line(path):
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"going\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        events = list(read_events(path))
        assert len(events) > 200
        assert [event.step for event in events] == list(range(len(events)))
        assert all(event.values == {"loss": event.step / 3} for event in events)


class FullDisk:
    """A raw file that takes ``room`` more bytes, then none."""

    def __init__(self, file, room: int) -> None:
        self.file = file
        self.room = room

    def write(self, data) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self.file.write(bytes(data[: self.room]))
        self.room -= taken
        return taken

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 40, 80, 200])
def test_a_full_disk_stops_no_step_and_surfaces_at_the_commit(path, room):
    log = EventLog(path)
    disk = FullDisk(log._file, room)
    log._file = disk
    for step in range(5):
        log.metrics({"loss": float(step)}, step=step)
    with pytest.raises(StorageError, match=r"could not be written \(No space left on device\)"):
        log.flush(sync=True)
    disk.room = 10**6
    log.metrics({"loss": 5.0}, step=5)
    log.flush(sync=True)
    log.close()
    assert [point.step for point in metric_history(path, "loss")] == [0, 1, 2, 3, 4, 5]


def test_a_file_size_limit_stops_no_step(path):
    """The real thing: the kernel refuses to let the file grow."""
    log = EventLog(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
        for step in range(20):
            log.metrics({"loss": float(step)}, step=step)
        with pytest.raises(StorageError, match="File too large"):
            log.flush(sync=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    log.flush(sync=True)
    log.close()
    assert [point.step for point in metric_history(path, "loss")] == list(range(20))


def test_closing_on_a_full_disk_does_not_raise_and_leaves_whole_lines(path, caplog):
    log = EventLog(path)
    log.metrics({"loss": 0.0}, step=0)
    log._file = FullDisk(log._file, 10)
    log.metrics({"loss": 1.0}, step=1)
    log.close()
    assert "No space left" in caplog.text
    assert [event.step for event in read_events(path)] == [0]
    EventLog(path).close()
    assert path.read_bytes().endswith(b"\n")


def test_a_log_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"events\.jsonl: the event log cannot be opened"):
        EventLog(tmp_path / "file" / "events.jsonl")


def test_logging_a_step_takes_well_under_a_millisecond(path):
    log = EventLog(path)
    values = {f"train/loss_{i}": i / 7 for i in range(10)}
    times = []
    for step in range(300):
        start = time.perf_counter()
        log.metrics(values, step=step)
        times.append(time.perf_counter() - start)
    log.close()
    assert sorted(times)[len(times) // 2] < 1e-3


@pytest.mark.parametrize("left", [0, 100])
def test_a_log_that_is_cut_while_it_is_written_says_so(path, left):
    log = EventLog(path)
    for step in range(1, 4):
        log.metrics({"loss": 1.0 / step}, step=step)
    before = log.mark()
    os.truncate(path, left)
    mark = log.mark()
    (note,) = [event for event in read_events(path) if event.kind == LOG_LOST]
    said = f"the log was cut while the run went on: it had {before.size} bytes, and {left} are left"
    assert (note.text, note.step) == (said, 3)
    log.metrics({"loss": 0.1}, step=4)
    # What follows is read, whether or not the cut was within a line; and the loss is said once.
    assert log.mark().lines == mark.lines + 1 == 5
    log.close()
    assert [point.step for point in metric_history(path, "loss")][-1] == 4
    assert [event.kind for event in read_events(path)].count(LOG_LOST) == 1
    assert lost_since(path, mark) is None
    assert lost_since(path, before) is not None


def test_a_reader_of_a_log_that_was_cut_begins_anew(path):
    log = EventLog(path)
    log.note("start", "once", step=0)
    log.note("end", "x" * 300, step=1)
    (*_, last) = read_events(path)
    os.truncate(path, 0)
    log.note("start", "again", step=0)
    assert [event.text for event in read_events(path, last.end)] == ["again"]
    log.close()
