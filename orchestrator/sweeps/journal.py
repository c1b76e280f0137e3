"""What has happened in a sweep, in order: ``sweep.jsonl``, from which everything is rebuilt.

One JSON object a line, forced to the disk, and of a sweep in a bucket brought there, before
anything follows from it:

- ``open``: which experiment and section the sweep belongs to;
- ``trial``: a trial and the values it was given;
- ``judged``: what the scheduler saw of a trial at an age, and whether it goes on;
- ``aged``: the score of a member of a population at an age;
- ``cloned``: a member that continues from another one's commit;
- ``end``: how a trial ended.

The state of searcher and scheduler is never stored: both are deterministic, so asking a new one the
same questions in the same order gives the state of the one that was lost.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from orchestrator.config.scalars import Json
from orchestrator.errors import StorageError
from orchestrator.storage.plain_files import open_regular, parse_json
from orchestrator.storage.run_files import SWEEP_JOURNAL


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        kind: of what happened.
        content: the rest of the line.
    """

    kind: str
    content: dict[str, Any]


def read_journal(folder: Path) -> list[Entry]:
    """What the journal in a sweep's folder holds, without touching it; nothing if there is none.

    Raises:
        StorageError: it cannot be read, or a line of it is damaged.
    """
    path = folder / SWEEP_JOURNAL
    try:
        with open_regular(path) as file:
            lines = file.readlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"{path}: the journal of the sweep cannot be read ({error.strerror})"
        ) from error
    whole = (line for line in lines if line.endswith(b"\n"))
    return [_parse(path, line, number) for number, line in enumerate(whole, start=1)]


def _parse(path: Path, line: bytes, number: int) -> Entry:
    try:
        tree = parse_json(line)
        return Entry(str(tree.pop("kind")), tree)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StorageError(
            f"{path}:{number}: this line is damaged, so what the sweep has decided is not known. "
            "Next: restore the file from a copy, or give the sweep another name"
        ) from error


class Journal:
    """The journal of one sweep, open for reading and appending.

    Held by one process at a time: the one that holds the lock of the sweep's folder.

    Args:
        folder: of the sweep; made when missing. A line that a crash left unfinished is cut off.
        keep: brings all that the journal is about to hold to where it outlives the folder, or
            raises; None where the folder is the truth.

    Raises:
        StorageError: it cannot be opened, or a whole line of it is damaged.
    """

    def __init__(self, folder: Path, *, keep: Callable[[bytes], None] | None = None) -> None:
        self.path = folder / SWEEP_JOURNAL
        self._keep = keep
        self._lock = Lock()
        self.entries: list[Entry] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._file.seek(0)
            end = 0
            for number, line in enumerate(self._file, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                self.entries.append(_parse(self.path, line, number))
            self._file.truncate(end)
        except OSError as error:
            raise StorageError(
                f"{self.path}: the journal of the sweep cannot be opened ({error.strerror}); make "
                "the folder writable"
            ) from error

    def add(self, kind: str, **content: Json) -> None:
        """Append one entry; when this returns it is on the disk, and in the bucket.

        Raises:
            StorageError: it could not be written.
        """
        self.add_all(kind, [content])

    def add_all(self, kind: str, contents: Iterable[Mapping[str, Json]]) -> None:
        """Append entries of one kind, all or, in a bucket, none of them: see :meth:`add`."""
        trees = ({"kind": kind, **content} for content in contents)
        lines = [json.dumps(tree, separators=(",", ":")).encode("ascii") + b"\n" for tree in trees]
        with self._lock:
            try:
                if self._keep is not None:
                    # First: what only the folder has may be lost, and was never decided.
                    self._keep(self.path.read_bytes() + b"".join(lines))
                self._file.writelines(lines)
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise StorageError(
                    f"{self.path}: the journal of the sweep cannot be written ({error.strerror}); "
                    "make room on this disk and run the same command again"
                ) from error
            for line in lines:
                self.entries.append(_parse(self.path, line, len(self.entries) + 1))

    def of(self, kind: str) -> Iterator[dict[str, Any]]:
        """Contents of the entries of one kind, in order."""
        return (entry.content for entry in list(self.entries) if entry.kind == kind)

    def ends(self) -> dict[int, dict[str, Any]]:
        """How each trial ended last, by its number."""
        return {entry["trial"]: entry for entry in self.of("end")}

    def close(self) -> None:
        """Close the file; what could not be written was said then."""
        with suppress(OSError):
            self._file.close()
