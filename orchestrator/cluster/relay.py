"""How a worker works on a run whose folder it may not see: found out where it runs, not assumed.

Where the driver's folder is there, a worker uses it. Where it is not, the worker gets a folder of
its own, on its own disk, for as long as it lives. What it leaves there is brought to the driver's
folder by a :class:`Courier`; its commits go there, or to the bucket of the run, directly; and what
somebody leaves for it in the driver's folder comes the other way.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.control import DriverLostError, RelayedFence, RelayedStorage, ask, signing
from orchestrator.errors import OrchestratorError
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket_mirror import chunks_of, files_of, state_of
from orchestrator.storage.local import Storage, temporary
from orchestrator.storage.run_files import (
    DECISIONS,
    EVENTS,
    EVENTS_KEPT,
    MEASURED,
    NONFINITE,
    STOP,
)

if TYPE_CHECKING:
    # Which imports torch, and Ray Train's controller does without.
    from orchestrator.training.job import TrainingJob

log = logging.getLogger(__name__)

#: Seconds between two rounds of a courier.
_ROUND_SECONDS = 0.5
#: Evidence of earlier steps is fetched up to this size: what says which steps are kept.
_FETCHED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Way:
    """How processes of a run reach its folder; picklable.

    Attributes:
        run_dir: the folder, as the driver knows it.
        marker: a file in it whose name nobody else has.
        control: the actor beside the driver; None where every process runs on the driver's node.
    """

    run_dir: str
    marker: str
    control: Any = None

    def is_shared(self) -> bool:
        """Whether the calling process sees the driver's folder."""
        return self.control is None or (Path(self.run_dir) / self.marker).exists()

    def signs(self, folder: str) -> Callable[[str, str | None], None] | None:
        """How signs of life are given from here, instead of by files in ``folder``.

        Returns:
            Takes a file name and a text, or None to remove it; None where files will do.
        """
        if self.is_shared():
            return None

        def sign(name: str, text: str | None) -> None:
            # Nobody waits for it: the next one follows soon.
            signing(self.control.sign).remote(folder, name, text)

        return sign

    def commits_of(self, job: TrainingJob) -> TrainingJob:
        """A job whose commits are found from where this is called."""
        if self.is_shared():
            return dataclasses.replace(job, run_dir=self.run_dir, storage=None)
        if job.bucket is not None:
            return job
        relayed = RelayedStorage(self.control, self.run_dir)
        return dataclasses.replace(job, storage=relayed, fence=RelayedFence(self.control))

    @contextmanager
    def working(self, job: TrainingJob, *, main: bool) -> Iterator[tuple[TrainingJob, Any]]:
        """The job as this rank works on it, and its courier; None where it needs none.

        Args:
            job: of the run.
            main: whether this is rank 0.
        """
        if self.is_shared():
            yield job, None
            return
        folder = Path(tempfile.mkdtemp(prefix="orchestrator-run-"))
        try:
            here = dataclasses.replace(self.commits_of(job), run_dir=str(folder))
            with Courier(RelayedStorage(self.control, self.run_dir), folder, main=main) as courier:
                yield here, courier
        except OrchestratorError as error:
            # A user knows the folder by its other name.
            error.args = tuple(
                word.replace(str(folder), self.run_dir) if isinstance(word, str) else word
                for word in error.args
            )
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Courier:
    """Brings what a rank leaves in its own folder to the driver's, and wishes back.

    Rank 0 begins with the event log as the driver has it. A context manager.

    Args:
        storage: the driver's folder.
        folder: this rank's.
        main: whether it is rank 0, which writes the log and is told of wishes.
    """

    def __init__(self, storage: RelayedStorage, folder: Path, *, main: bool) -> None:
        self._storage = storage
        self._folder = folder
        self._main = main
        self._log_bytes = 0
        self._brought: dict[str, tuple[int, int]] = {}
        self._verdicts: frozenset[str] = frozenset()
        self._pushing = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)

    def __enter__(self) -> Courier:
        if self._main:
            self._fetch()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        try:
            self.push()
        except Exception as error:
            if kind is None:
                raise
            log.warning("what was left could not be sent to the driver: %s", error)

    def push(self) -> None:
        """Bring all that there is, and return once the driver's disk has it.

        Raises:
            OSError: the driver's disk does not take it.
            StorageError: the run was taken over.
            DriverLostError: the driver's node does not answer.
        """
        with self._pushing:
            if self._main:
                self._push_log()
            for file in self._files():
                state = state_of(file)
                if self._brought.get(str(file)) != state:
                    self._send(file)
                    self._brought[str(file)] = state

    def _fetch(self) -> None:
        """Take over what rank 0 of an earlier attempt, or the driver, has left."""
        names = {entry.name: entry for entry in self._storage.list("")}
        if EVENTS in names:
            content = b"".join(self._storage.read(EVENTS))
            content = content[: content.rfind(b"\n") + 1]
            (self._folder / EVENTS).write_bytes(content)
            self._log_bytes = len(content)
        for step in self._storage.list(NONFINITE):
            for entry in self._storage.list(f"{NONFINITE}/{step.name}") if step.is_dir else ():
                if not entry.is_dir and entry.size <= _FETCHED_BYTES:
                    key = f"{NONFINITE}/{step.name}/{entry.name}"
                    write_atomic(self._folder / key, b"".join(self._storage.read(key)))
        for file in self._files():
            self._brought[str(file)] = state_of(file)

    def _push_log(self) -> None:
        try:
            with (self._folder / EVENTS).open("rb") as file:
                file.seek(self._log_bytes)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        if whole:
            ask(self._storage.control.append.remote(EVENTS, self._log_bytes, whole))
            self._log_bytes += len(whole)

    def _files(self) -> list[Path]:
        """What is brought beside the log; what is being written is left out."""
        names = (*MEASURED, NONFINITE, EVENTS_KEPT) if self._main else (NONFINITE,)
        return [file for file in files_of(self._folder, names) if file.name != EVENTS]

    def _send(self, file: Path) -> None:
        key = file.relative_to(self._folder).as_posix()
        _make_dirs(self._storage, key)
        folder, slash, name = key.rpartition("/")
        # Readers of the folder pass over hidden files.
        fresh = temporary(f"{folder}{slash}.{name}")
        self._storage.write_file(fresh, chunks_of(file))
        self._storage.rename(fresh, key)

    def _run(self) -> None:
        trouble: Exception | None = None
        while not self._over.wait(_ROUND_SECONDS):
            before, trouble = trouble, self._round()
            if trouble is not None and before is None:
                log.warning("nothing could be sent to the driver: %s", trouble)

    def _round(self) -> Exception | None:
        """One round; what went wrong. The loop meets the same at its next commit."""
        try:
            if self._main:
                self._hear()
            self.push()
        except (OSError, OrchestratorError, DriverLostError) as error:
            return error
        return None

    def _hear(self) -> None:
        stop, verdicts = ask(signing(self._storage.control.wishes).remote(self._verdicts))
        for name, content in verdicts.items():
            write_atomic(self._folder / DECISIONS / name, content)
        self._verdicts |= frozenset(verdicts)
        if stop:
            (self._folder / STOP).touch()


def _make_dirs(storage: Storage, key: str) -> None:
    parts = key.split("/")[:-1]
    for depth in range(1, len(parts) + 1):
        storage.make_dir("/".join(parts[:depth]))
