"""A run that lives in a bucket, and its mirror in the working folder of this start.

The bucket is the truth. Commits are written to it directly; everything else a run leaves - the
event log, its identity, evaluations, the result - is written to the working folder as for any other
run and brought to the bucket as it changes. Two rules keep a run exact when the working folder is
lost with its machine:

- what was measured goes first: the event log and the newest evaluation are in the bucket before the
  commit, or the scores of a commit, that they belong to;
- MLflow is told only what the bucket has, see :data:`~orchestrator.storage.run_files.EVENTS_KEPT`:
  points that nobody remembers would be sent a second time.

A start makes the working folder what the bucket says, whatever was there: the steps behind the
newest commit are done again anyway. A sweep lives in a bucket in the same way, beside its trials.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from orchestrator.errors import StorageError
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket import open_storage
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.local import CHUNK_BYTES, Storage
from orchestrator.storage.run_files import (
    BUCKET,
    CHECKPOINTS,
    DESCRIBING,
    EVENTS,
    EVENTS_KEPT,
    RECORDS,
)

log = logging.getLogger(__name__)

_PUSH_SECONDS = 10.0


class Records:
    """Brings files of a working folder to the bucket; a file that has not changed stays.

    Args:
        location: URI of the run.
        run_dir: its working folder.
        fence: raises when this process has lost the right to write.
    """

    def __init__(self, location: str, run_dir: Path, fence: Callable[[], None]) -> None:
        self._storage = open_storage(location)
        self._run_dir = run_dir
        self._fence = fence
        self._brought: dict[str, tuple[int, int]] = {}
        self._pushing = threading.Lock()

    def mark_brought(self, names: Iterable[str]) -> None:
        """Take note that files are as the bucket has them, which was where they came from."""
        with self._pushing:
            for file in files_of(self._run_dir, names):
                self._brought[str(file)] = state_of(file)

    def push(self, names: Iterable[str]) -> None:
        """Upload what has changed of files and folders.

        Raises:
            StorageError: the bucket does not take it, or the run was taken over.
        """
        try:
            with self._pushing:
                self._push(names)
        except OSError as error:
            raise StorageError(
                f"{self._storage.describe('')}: cannot bring the records of the run there: "
                f"{error}. Next: see that the bucket can be written, then run the same command "
                "again; it goes on from the newest whole checkpoint"
            ) from error

    def _push(self, names: Iterable[str]) -> None:
        changed = [
            (file, state)
            for file in files_of(self._run_dir, names)
            if self._brought.get(str(file)) != (state := state_of(file))
        ]
        if changed:
            self._fence()
        for file, state in changed:
            self._upload(file)
            self._brought[str(file)] = state

    def _upload(self, file: Path) -> None:
        key = file.relative_to(self._run_dir).as_posix()
        folder = key.rpartition("/")[0]
        if folder:
            self._storage.make_dir(folder)
        if key != EVENTS:
            self._storage.write_file(key, chunks_of(file))
            return
        # The log grows meanwhile, and a line may be half there.
        content = file.read_bytes()
        content = content[: content.rfind(b"\n") + 1]
        there = {entry.name: entry.size for entry in self._storage.list("")}
        # A log is only ever added to: a shorter one is an older copy of what is there.
        if len(content) > there.get(EVENTS, -1):
            self._storage.write_file(key, [content])
        write_atomic(self._run_dir / EVENTS_KEPT, b"%d" % len(content))


class BucketMirror:
    """Holds a run, or a sweep, in a bucket for one start of its driver; a context manager.

    Entering takes the run and brings the working folder up to date. Until it is left, what the
    driver writes there is brought to the bucket every few seconds; leaving brings the rest.

    Args:
        location: URI of the run.
        run_dir: its working folder.
        records: all that lies there beside commits.
        watched: what of it is brought while the driver works; the rest when it is asked to, and
            when it is left.
    """

    def __init__(
        self,
        location: str,
        run_dir: Path,
        *,
        records: Sequence[str] = RECORDS,
        watched: Sequence[str] = DESCRIBING,
    ) -> None:
        self.location = location
        self.names = records
        self._watched = watched
        self.lock = BucketLock(location)
        self.run_dir = run_dir
        self.storage = open_storage(location)
        self.uri = self.storage.describe("")
        self._records = Records(location, run_dir, self.lock.require_held)
        self._over = threading.Event()
        self._pushing: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.lock.acquire()
        try:
            self.fetch()
        except BaseException:
            self.lock.release()
            raise
        self._over.clear()
        self._pushing = threading.Thread(target=self._push, name="bucket-mirror", daemon=True)
        self._pushing.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._pushing is not None:
            self._pushing.join()
        try:
            self._records.push(self.names)
        except StorageError as failure:
            if kind is None:
                raise
            log.warning("%s", failure)
        finally:
            self.lock.release()

    def settle(self, names: Sequence[str] | None = None) -> None:
        """Bring what there is as far as the bucket takes it.

        Args:
            names: of what; None for all, once the workers have ended.
        """
        try:
            self._records.push(self.names if names is None else names)
        except StorageError as error:
            log.warning("%s", error)

    def _push(self) -> None:
        while not self._over.wait(_PUSH_SECONDS):
            self.settle(self._watched)

    def fetch(self) -> None:
        """Make the working folder what the bucket says; held, or where nobody writes any more.

        Raises:
            StorageError: the folder is another run's, the bucket has lost the run, or one of both
                cannot be read or written.
        """
        uri = self.storage.describe("")
        self._claim_folder(uri)
        try:
            self._require_log(uri)
            for name in (EVENTS_KEPT, CHECKPOINTS, *self.names):
                _remove(self.run_dir / name)
            for key in _keys(self.storage, self.names):
                write_atomic(self.run_dir / key, b"".join(self.storage.read(key)))
            log_file = self.run_dir / EVENTS
            kept = log_file.stat().st_size if log_file.exists() else 0
            write_atomic(self.run_dir / EVENTS_KEPT, b"%d" % kept)
            self._records.mark_brought(self.names)
        except OSError as error:
            raise StorageError(
                f"{uri}: cannot be brought to {self.run_dir}: {error}. Next: see that `scratch` "
                "names a folder that can be written and has room, and that the bucket answers"
            ) from error

    def _require_log(self, uri: str) -> None:
        """Refuse to make the working folder what a bucket says that has lost the run."""
        try:
            kept = int((self.run_dir / EVENTS_KEPT).read_bytes())
        except (OSError, ValueError):
            return
        if kept > 0 and all(entry.name != EVENTS for entry in self.storage.list("")):
            raise StorageError(
                f"{uri}: has no {EVENTS}, of which {kept} bytes were brought there: it was "
                f"deleted, or this is another bucket of that name. {self.run_dir} still has the "
                "records of the run. Next: put back what was deleted, from there or from a copy; "
                "to begin anew, remove that folder"
            )

    def _claim_folder(self, uri: str) -> None:
        mark = self.run_dir / BUCKET
        found = mark.read_text("utf-8", "replace") if mark.is_file() else None
        there = self.run_dir.iterdir() if self.run_dir.is_dir() else ()
        # A hidden file is one that was being written.
        if found is None and any(not path.name.startswith(".") for path in there):
            raise StorageError(
                f"{self.run_dir}: holds a run of its own and is no working folder of {uri}. Next: "
                "give the experiment another name, or another `scratch`"
            )
        if found not in (None, uri):
            raise StorageError(
                f"{self.run_dir}: is the working folder of {found}, not of {uri}. Next: give the "
                "experiment another name, or another `scratch`"
            )
        write_atomic(mark, uri.encode("utf-8"))


def mirrored(location: str | None, run_dir: Path) -> AbstractContextManager[BucketMirror | None]:
    """Holds a run where it is in a bucket; nothing to hold where ``location`` is None."""
    return nullcontext() if location is None else BucketMirror(location, run_dir)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def state_of(file: Path) -> tuple[int, int]:
    """What changes when a file does: its size, and the time of its last change."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def files_of(run_dir: Path, names: Iterable[str]) -> list[Path]:
    """Files of these names, and all in the folders of these names; those being written left out."""
    found: list[Path] = []
    for name in names:
        path = run_dir / name
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [file for file in inside if file.is_file() and not file.name.startswith(".")]
    return found


def _keys(storage: Storage, names: Iterable[str]) -> Iterator[str]:
    """Keys in the bucket of what ``names`` stands for."""
    there = {entry.name: entry for entry in storage.list("")}
    for name in names:
        if name in there:
            yield from _walk(storage, name) if there[name].is_dir else [name]


def _walk(storage: Storage, key: str) -> Iterator[str]:
    for entry in storage.list(key):
        inner = f"{key}/{entry.name}"
        if entry.is_dir:
            yield from _walk(storage, inner)
        else:
            yield inner


def chunks_of(file: Path) -> Iterator[bytes]:
    """Content of a file."""
    with file.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
