"""A sweep that lives in a bucket: its journal there, and its ended trials in the working folder.

An object can only be replaced as a whole, and a driver that was taken for dead may finish, when it
wakes up, the upload that it was in. So each driver that holds the sweep writes the whole journal
under a name of its own, ``journal/<number>.jsonl``, whose number is higher than all before, and the
highest is the journal. Whoever wrote an entry looks at the fence once more before anything follows
from it: a driver that takes the sweep after that look finds the entry in what it reads.
``sweep.jsonl`` beside it is a copy for readers, brought as the other records are.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.checkpoints.manifest import copy_commit
from orchestrator.errors import StorageError
from orchestrator.storage.address import below
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket import open_storage
from orchestrator.storage.bucket_mirror import BucketMirror
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import (
    MLFLOW_SPEC,
    RECORDS,
    RESULT,
    SWEEP_JOURNAL,
    SWEEP_JOURNALS,
    SWEEP_RECORDS,
)
from orchestrator.sweeps.report import Row
from orchestrator.sweeps.sources import FINAL

log = logging.getLogger(__name__)

_JOURNAL = re.compile(r"(\d{9,})\.jsonl")


@contextmanager
def held_sweep(location: str, folder: Path) -> Iterator[SweepBucket]:
    """Hold a sweep in a bucket; its working folder is what the bucket says from then on.

    Args:
        location: URI of the sweep.
        folder: its working folder.

    Raises:
        StorageError: another driver holds it, or it cannot be read.
    """
    mirror = BucketMirror(location, folder, records=SWEEP_RECORDS, watched=SWEEP_RECORDS)
    with mirror:
        yield SweepBucket(mirror)


class SweepBucket:
    """The bucket of a sweep that this process holds.

    Args:
        mirror: of the sweep, held. The journal is brought to its working folder.
    """

    def __init__(self, mirror: BucketMirror) -> None:
        self.mirror = mirror
        self._storage = mirror.storage
        with _advice(self._storage.describe(SWEEP_JOURNALS)):
            self._older = self._journals()
            newest = max(self._older, default=0)
            if newest:
                content = b"".join(self._storage.read(_key(newest)))
                write_atomic(mirror.run_dir / SWEEP_JOURNAL, content)
        # Where somebody has deleted the locks, tokens begin anew.
        self._number = max(mirror.lock.fence().token, newest + 1)

    def _journals(self) -> list[int]:
        found = (_JOURNAL.fullmatch(entry.name) for entry in self._storage.list(SWEEP_JOURNALS))
        return [int(match[1]) for match in found if match]

    def keep_journal(self, content: bytes) -> None:
        """Bring the whole journal to the bucket; when this returns, every later driver reads it.

        Raises:
            StorageError: the bucket does not take it, or the sweep was taken over.
        """
        fence = self.mirror.lock.fence()
        with _advice(self._storage.describe(SWEEP_JOURNALS)):
            fence()
            self._storage.make_dir(SWEEP_JOURNALS)
            self._storage.write_file(_key(self._number), [content])
            fence()
        for number in self._older:
            with suppress(OSError):
                self._storage.unlink(_key(number))
        self._older = []

    def bring_ended(self, rows: Sequence[Row]) -> int:
        """Bring the records of trials that have ended elsewhere to the working folder.

        Returns:
            How many there were.

        Raises:
            StorageError: the bucket or the folder cannot be read or written.
        """
        found = 0
        for row in rows:
            folder = self.mirror.run_dir / row.trial.name
            if row.state not in FINAL or _has_result(folder, row):
                continue
            trial = below(self.mirror.location, row.trial.name)
            BucketMirror(trial, folder, records=(*RECORDS, MLFLOW_SPEC)).fetch()
            found += 1
            if (folder / MLFLOW_SPEC).is_file():
                # MLflow lacks something of it, which may be its checkpoint.
                self.bring_best(row)
        return found

    def bring_best(self, row: Row) -> None:
        """See that a trial's best checkpoint lies in the working folder, for other commands."""
        there = row.best_checkpoint
        if there is None or (self.mirror.run_dir / there).is_dir():
            return
        name, _, commit = there.partition("/")
        try:
            source = open_storage(below(self.mirror.location, name))
            copy_commit(source, commit, LocalStorage(self.mirror.run_dir / name))
        except StorageError as error:
            log.warning("%s", error)


def _key(number: int) -> str:
    return f"{SWEEP_JOURNALS}/{number:09d}.jsonl"


def _has_result(folder: Path, row: Row) -> bool:
    """Whether a working folder is that of the end that the journal has; its result came last."""
    with suppress(OSError, ValueError):
        # As text, in which what is not a number equals itself.
        return json.dumps(read_json(folder / RESULT)) == json.dumps(row.result)
    return False


@contextmanager
def _advice(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{where}: the journal of the sweep cannot be read or written: {error}. Next: see that "
            "the bucket can be reached and written, then run the same command again"
        ) from error
