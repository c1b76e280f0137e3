"""The event log of a run: an append-only file that is the truth about what was measured.

One JSON object a line, written by one process, rank 0 of the run::

    {"seq":7,"kind":"metrics","step":40,"time_ms":1700000000000,"values":{"train/loss":1.5}}
    {"seq":8,"kind":"resume","step":40,"time_ms":1700000000001,"text":"from commit 40"}

All metrics of one moment share a line. NaN and infinities, which JSON cannot hold, are the strings
``NaN``, ``Infinity`` and ``-Infinity``. Each line reaches the operating system when it is written,
so it outlives a killed process; :meth:`EventLog.flush` makes it outlive the machine.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.credentials import mask
from orchestrator.errors import StorageError
from orchestrator.storage.plain_files import open_regular, parse_json

logger = logging.getLogger(__name__)

#: Kind of the events that carry values; every other kind is a note.
METRICS = "metrics"
#: Kind of the note that says that lines of the log were lost.
LOG_LOST = "log_lost"
_LONGEST_LINE = 2**20
#: Lines and steps that no run comes to, and milliseconds that no calendar has a date for.
_MOST, _LATEST = 2**53, 62_000_000_000_000


class Event(NamedTuple):
    """One line of the log.

    Attributes:
        seq: its number in the log, from 0.
        kind: ``metrics``, or the kind of a note.
        step: optimizer steps done when it was written.
        time_ms: wall clock, milliseconds since 1970; never used to order anything.
        values: by metric name; empty for a note.
        text: of a note; empty for metrics.
        end: byte offset behind the line, where reading can go on.
    """

    seq: int
    kind: str
    step: int
    time_ms: int
    values: dict[str, float]
    text: str
    end: int


class LogMark(NamedTuple):
    """How far a log was at some moment.

    Attributes:
        size: in bytes, all of them on the disk.
        lines: written since its beginning.
    """

    size: int
    lines: int


class Point(NamedTuple):
    """One value of a metric.

    Attributes:
        step: it belongs to.
        value: may be NaN or infinite.
        time_ms: when it was first logged.
    """

    step: int
    value: float
    time_ms: int


class EventLog:
    """The writing end.

    A run that is killed and started again repeats the steps behind its last commit. Whatever was
    logged for them before is kept, with its first time, and not logged again: each metric has one
    value per step.

    Args:
        path: of the log; made, with its folder, when missing. A line that a crash left unfinished
            is cut off.
        clock: wall clock in seconds.

    Raises:
        StorageError: the log cannot be opened.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._seq = 0
        self._steps: defaultdict[str, set[int]] = defaultdict(set)
        #: Bytes that the disk has not taken yet; their start may continue a line in the file.
        self._pending = bytearray()
        #: Bytes that the file has to have: whole lines that were there, and what was added.
        self._size = 0
        self._step = 0
        self._failures = 0
        self._failure: OSError | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A link in its place would have what was measured written elsewhere.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            # A pipe in its place would have this wait for a reader.
            flags |= os.O_NONBLOCK
            self._file = os.fdopen(os.open(path, flags, 0o666), "ab", buffering=0)
            self._size = self._replay()
            self._file.truncate(self._size)
        except OSError as error:
            raise StorageError(
                f"{path}: the event log cannot be opened ({error.strerror}); make the run folder "
                "writable"
            ) from error

    def _replay(self) -> int:
        """Take in what is logged already; returns the length of its whole lines."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                event = _parse(line, end)
                if event is None:
                    logger.warning("%s: line before byte %d is damaged, left out", self.path, end)
                    continue
                self._seq = event.seq + 1
                for key in event.values:
                    self._steps[key].add(event.step)
        return end

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log the metrics of a step, except those that it has already.

        Does not raise when the disk fails: see :meth:`flush`.
        """
        new = {key: float(value) for key, value in values.items() if step not in self._steps[key]}
        if not new:
            return
        for key in new:
            self._steps[key].add(step)
        encoded = {
            key: value if math.isfinite(value) else _encode_nonfinite(value)
            for key, value in new.items()
        }
        self._append(METRICS, step, {"values": encoded})

    def note(self, kind: str, text: str, *, step: int) -> None:
        """Log that something happened, such as a resume; does not raise when the disk fails."""
        if kind == METRICS:
            raise ValueError(f"{METRICS!r} is not the kind of a note")
        self._append(kind, step, {"text": mask(text)})

    def _append(self, kind: str, step: int, content: dict[str, Any]) -> None:
        time_ms = int(self._clock() * 1000)
        self._step = step
        line = {"seq": self._seq, "kind": kind, "step": step, "time_ms": time_ms, **content}
        self._seq += 1
        text = json.dumps(line, separators=(",", ":"), allow_nan=False)
        self._pending += text.encode("ascii") + b"\n"
        self._drain()

    def _drain(self) -> None:
        """Hand pending bytes to the operating system; what it refuses stays pending."""
        try:
            while self._pending:
                taken = self._file.write(self._pending)
                self._size += taken
                del self._pending[:taken]
        except OSError as error:
            self._failures += 1
            self._failure = error

    def flush(self, *, sync: bool) -> None:
        """Write what an earlier failure has held back; with ``sync`` force all of it to the disk.

        Raises:
            StorageError: the disk still refuses, in which case nothing is lost and the next call
                tries again; or, with ``sync``, the file has no name any more.
        """
        self._drain()
        try:
            if sync:
                self._notice_loss()
            if self._pending and self._failure is not None:
                raise self._failure
            if sync:
                os.fsync(self._file.fileno())
                self._require_name()
        except OSError as error:
            raise StorageError(
                f"{self.path}: {len(self._pending)} bytes of events could not be written "
                f"({error.strerror}), after {self._failures} failed tries; make room on this disk "
                "and run again"
            ) from error

    def mark(self) -> LogMark:
        """Bring everything to the disk and say how far the log is.

        Raises:
            StorageError: the disk refuses, or the file has no name any more.
        """
        self.flush(sync=True)
        return LogMark(os.fstat(self._file.fileno()).st_size, self._seq)

    def _require_name(self) -> None:
        """Raise if the file is written to no purpose, since nobody will find it again."""
        own = os.fstat(self._file.fileno())
        try:
            named = self.path.stat()
        except FileNotFoundError:
            named = None
        if named is None or (named.st_dev, named.st_ino) != (own.st_dev, own.st_ino):
            raise StorageError(
                f"{self.path}: the event log was removed or renamed, or its folder was, while the "
                "run went on; what is measured from here on would be lost. Next: bring the run "
                "folder back to this place and run the same command again"
            )

    def _notice_loss(self) -> None:
        """Note that lines are gone where somebody has cut the file while it was written to."""
        size = os.fstat(self._file.fileno()).st_size
        if size >= self._size:
            return
        had, self._size = self._size, size
        with self.path.open("rb") as file:
            file.seek(max(0, size - 1))
            # Within a line; what follows is to be one of its own.
            if file.read(1) not in (b"", b"\n"):
                self._pending += b"\n"
        self.note(
            LOG_LOST,
            f"the log was cut while the run went on: it had {had} bytes, and {size} are left",
            step=self._step,
        )

    def close(self) -> None:
        """Write what is pending, if possible, and close the file; never raises."""
        try:
            self.flush(sync=True)
        except StorageError as error:
            logger.warning("%s", error)
        self._file.close()


def read_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """Whole events behind a byte offset; none when there is no log yet.

    The offset is 0 or the ``end`` of an event; where the log has been cut since, reading begins
    anew. The log may be written meanwhile: a line without its end is left for the next call. A
    damaged line is passed over; of a log that is read from its beginning, how many are is a
    warning.

    Raises:
        OSError: something is there that cannot be read, or is no file.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        if offset > os.fstat(file.fileno()).st_size:
            offset = 0
        damaged, beginning = 0, offset == 0
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            event = _parse(line, offset)
            damaged += event is None
            if event is not None:
                yield event
    if damaged and beginning:
        logger.warning("%s: %d damaged lines were left out", path, damaged)


def lost_since(path: Path, mark: LogMark) -> str | None:
    """What a log lacks that it had at a mark; None where it goes on from there.

    Args:
        path: of the log.
        mark: of an earlier moment.

    Raises:
        OSError: something is there that cannot be read, or is no file.
    """
    try:
        with open_regular(path) as file:
            end = file.seek(0, os.SEEK_END)
            if end < mark.size:
                return f"the log ends at byte {end}, and had {mark.size} bytes"
            start = file.seek(max(0, mark.size - _LONGEST_LINE))
            before = file.read(mark.size - start)
    except FileNotFoundError:
        return f"the log is gone, and had {mark.size} bytes"
    if not mark.size:
        return None
    event = _parse(before[before[:-1].rfind(b"\n") + 1 :], mark.size)
    if not before.endswith(b"\n") or event is None or event.seq != mark.lines - 1:
        return f"line {mark.lines} of the log does not end at byte {mark.size} any more"
    return None


def metric_history(path: Path, key: str) -> list[Point]:
    """All values of one metric, in the order they were logged."""
    return [
        Point(event.step, event.values[key], event.time_ms)
        for event in read_events(path)
        if key in event.values
    ]


def _encode_nonfinite(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _parse(line: bytes, end: int) -> Event | None:
    """The event of a line, or None when it is damaged."""
    try:
        tree = parse_json(line)
        event = Event(
            seq=int(tree["seq"]),
            kind=str(tree["kind"]),
            step=int(tree["step"]),
            time_ms=int(tree["time_ms"]),
            values={key: float(value) for key, value in tree.get("values", {}).items()},
            text=str(tree.get("text", "")),
            end=end,
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    possible = 0 <= event.seq < _MOST and 0 <= event.step < _MOST and abs(event.time_ms) < _LATEST
    return event if possible else None
