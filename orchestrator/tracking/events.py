"""The run's append-only event log: the truth that MLflow, progress lines and reports read.

One JSON object a line in ``events.jsonl``. Only rank 0 of a run writes it. After a crash the step
loop does some steps again and logs the same points again; a point (key, step) that is in the log
already is not written twice, so every reader sees each exactly once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError

FILE_NAME = "events.jsonl"


@dataclass(frozen=True)
class Event:
    """One line of the log.

    Attributes:
        kind: ``metrics``, or what a note is about (``resume``, ``nonfinite``, ...).
        step: optimizer steps done when it was written.
        time_ms: wall clock, milliseconds since the epoch.
        values: metrics by name; empty for notes.
        text: what a note says; empty for metrics.
        end: offset of the byte after the line, where reading goes on.
    """

    kind: str
    step: int
    time_ms: int
    values: dict[str, float] = field(default_factory=dict)
    text: str = ""
    end: int = 0


def read_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """Complete lines from ``offset`` on; a line still being written is left for the next call.

    Raises:
        StorageError: a complete line that is not an event, with its position.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line, offset, path)


def metric_history(path: Path, key: str) -> list[tuple[int, float]]:
    """``(step, value)`` of one metric, in the order written."""
    return [(event.step, event.values[key]) for event in read_events(path) if key in event.values]


def _parse(line: bytes, end: int, path: Path) -> Event:
    try:
        tree: dict[str, Any] = json.loads(line)
        return Event(
            kind=tree["kind"],
            step=tree["step"],
            time_ms=tree["time_ms"],
            # JSON has no NaN and no infinities; they are kept as text.
            values={name: float(value) for name, value in tree.get("values", {}).items()},
            text=tree.get("text", ""),
            end=end,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path}: the line before byte {end} is not an event ({error}). Next: move the file "
            "away; training goes on from its checkpoints, the curves begin anew"
        ) from error


class EventLog:
    """Writer of the log. Disk trouble never reaches the step loop before :meth:`flush`.

    Args:
        path: of the log; a torn last line, left by a kill, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[tuple[str, int]] = set()
        self._failure: OSError | None = None
        end = 0
        for event in read_events(path):
            end = event.end
            self._seen.update((name, event.step) for name in event.values)
        self._file = path.open("ab")
        if self._file.tell() > end:
            self._file.truncate(end)
            self._file.seek(0, os.SEEK_END)

    def metrics(self, values: Mapping[str, float], *, step: int) -> None:
        """Log metrics of ``step``; those already in the log for that step are left out."""
        fresh = {k: v for k, v in values.items() if (k, step) not in self._seen}
        if not fresh:
            return
        self._seen.update((name, step) for name in fresh)
        encoded = {k: v if math.isfinite(v) else str(v) for k, v in fresh.items()}
        self._write({"kind": "metrics", "step": step, "values": encoded})

    def note(self, kind: str, text: str, *, step: int) -> None:
        """Log something worth knowing that is not a number."""
        self._write({"kind": kind, "step": step, "text": text})

    def flush(self, *, sync: bool = False) -> None:
        """Hand everything to the operating system, and with ``sync`` to the disk.

        Raises:
            StorageError: this or an earlier write failed.
        """
        try:
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._failure = self._failure or error
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise StorageError(f"{self.path}: cannot write the event log: {failure}") from failure

    def close(self) -> None:
        """Write what is left and close; errors of a disk that is going away are not raised."""
        try:
            self._file.close()
        except OSError as error:
            self._failure = error

    def _write(self, tree: dict[str, Any]) -> None:
        line = json.dumps({**tree, "time_ms": time.time_ns() // 1_000_000}, allow_nan=False)
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            self._failure = self._failure or error
