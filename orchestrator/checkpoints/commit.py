"""Commits: checkpoints that are whole or not there, whatever happens while they are written.

A commit of step 10 is written to ``ckpt/000000010.tmp-*/``: its files, each flushed to the disk,
then ``MANIFEST.json`` with their sizes and digests. Renaming the folder to ``ckpt/000000010`` makes
it a commit; ``COMMIT`` then points at it, as a hint. On an object store, which cannot rename, the
manifest is written last and makes the commit. Readers look at the newest commit first and trust
none whose bytes they have not compared with its manifest.

Scores come after the commit they belong to, as ``METRICS.json`` beside the manifest, so that the
best commit is the same however often a run was interrupted.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import Literal

from orchestrator.checkpoints.codec import STATE_NAME, HostCopy, Json, TrainState, decode, encode
from orchestrator.checkpoints.commit_thread import CommitThread
from orchestrator.checkpoints.manifest import (
    MANIFEST_NAME,
    METRICS_NAME,
    POINTER_NAME,
    Commit,
    Manifest,
    Rejected,
    check,
    checked_commits,
    folder_name,
    published,
    read_verified,
    seal_metrics,
    step_of,
    verify,
    with_metrics,
    write_recorded,
)
from orchestrator.checkpoints.retention import (
    Policy,
    collect,
    discard,
    quarantine,
    require_kept,
    same_commit,
    sweep,
    was_cut_off,
)
from orchestrator.errors import StorageError
from orchestrator.storage.local import Storage, temporary
from orchestrator.storage.run_files import CHECKPOINTS, LABEL_MAP
from orchestrator.storage.sealed import UnusableError, seal
from orchestrator.tracking.events import LogMark

log = logging.getLogger(__name__)

_REFRESH_SECONDS = 30.0


@dataclass(frozen=True)
class Found:
    """The newest commit that can be trusted, and the newer ones that cannot.

    Attributes:
        commit: None when nothing was ever committed.
        rejected: newest first.
    """

    commit: Commit | None
    rejected: tuple[Rejected, ...]


class CommitStore:
    """The commits of one run.

    One process writes; any number read. Everything that changes the store, and was asked for with
    :meth:`save_async`, :meth:`attach_metrics` or :meth:`collect`, is done in that order by one
    thread beside the step loop, which asks again for some minutes where an object store does not
    answer. What goes wrong there is raised by the next such call or by :meth:`wait`. Everything
    that reads the store waits for the thread first.

    Args:
        storage: the run folder.
        keep_last: newest commits kept.
        keep_best: commits kept by ``metric``, besides those.
        metric: name of the metric that ranks commits.
        mode: whether a larger or a smaller value is better.
        fence: called before anything is published or deleted; raises when this process has lost
            the right to do so, see :class:`~orchestrator.storage.lease.Fence`.
        beside: called before a commit or its scores are published; brings to safety what belongs
            to them and lies elsewhere. None where nothing does.
        awaited: whether the commit of a step is going to be scored; until then it is not deleted.
        interim: whether the scores of a step are those of a shortened run alone; see
            :class:`~orchestrator.checkpoints.retention.Policy`.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        keep_last: int = 5,
        keep_best: int = 5,
        metric: str = "val/AP",
        mode: Literal["max", "min"] = "max",
        fence: Callable[[], None] | None = None,
        beside: Callable[[], None] | None = None,
        awaited: Callable[[int], bool] = lambda step: False,
        interim: Callable[[int], bool] = lambda step: False,
    ) -> None:
        self.storage = storage
        sign = 1.0 if mode == "max" else -1.0
        self.policy = Policy(keep_last, keep_best, metric, sign, awaited)
        self._fence = fence or (lambda: None)
        self._beside = beside
        self._interim = interim
        self._refreshed = time.monotonic()
        self._parent: int | None = None
        self._proven: set[str] = set()
        #: Commits that this process has made or met as their writer, and has not deleted.
        self._kept: set[str] = set()
        self._host_copy = HostCopy()
        # What is renamed lies on a disk, whose errors stay.
        self._thread = CommitThread(patient=not storage.renames)

    # Writing

    def save(
        self,
        state: TrainState,
        *,
        config_digest: str,
        data_digest: str,
        label_map: str,
        log: LogMark | None = None,
    ) -> None:
        """Commit ``state`` and return when it is safe.

        Committing the same content again is fine and changes nothing.

        Args:
            state: what to save.
            config_digest: of the configuration it comes from.
            data_digest: of the data it comes from.
            label_map: the classes, as JSON.
            log: how far the event log is; what it says up to there belongs to the commit.

        Raises:
            StorageError: it could not be written, in which case earlier commits are as they were;
                or the same step is committed already with other content.
        """
        self.wait()
        self._save(state, config_digest, data_digest, label_map, log)

    def save_async(
        self,
        state: TrainState,
        *,
        config_digest: str,
        data_digest: str,
        label_map: str,
        log: LogMark | None = None,
    ) -> None:
        """Like :meth:`save`, but returns once the tensors are copied.

        Waits first for everything asked for earlier.
        """
        self.wait()
        copy = self._host_copy.take(state)
        self._thread.submit(partial(self._save, copy, config_digest, data_digest, label_map, log))

    def attach_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the scores of the commit of ``step``; those of a repeated evaluation replace them.

        Raises:
            StorageError: through :meth:`wait`, when there is no such commit or it cannot be
                written.
        """
        self._thread.submit(partial(self._attach, step, dict(metrics)))

    def collect(self) -> None:
        """Delete commits that are neither among the newest nor among the best."""
        self._thread.submit(self._collect)

    def then(self, job: Callable[[], None]) -> None:
        """Call ``job`` once everything asked for so far is done, such as a commit it reads."""
        self._thread.submit(job)

    def refresh(self) -> None:
        """Let ``beside`` do its work also between commits that are far apart, now and then."""
        now = time.monotonic()
        if self._beside is None or now < self._refreshed + _REFRESH_SECONDS:
            return
        self._refreshed = now
        self._thread.submit(self._refresh)

    def wait(self) -> None:
        """Return when everything asked for is done.

        Raises:
            StorageError: the first thing that went wrong since the last call.
        """
        self._thread.wait()

    def require_kept(self) -> None:
        """Raise :class:`StorageError` if others have removed commits of this writer.

        A commit does the same once it is made, so that nothing more is lost.
        """
        self.wait()
        with _advice("cannot list checkpoints", self.storage.describe(CHECKPOINTS)):
            require_kept(self.storage, self._kept)

    def close(self) -> None:
        """:meth:`wait`, and end the thread."""
        self._thread.close()

    def sweep(self) -> list[Rejected]:
        """Remove what interrupted writers left behind; for the writer, before it starts.

        Unfinished folders are deleted. A commit that is torn, which only a damaged disk or a
        careless hand brings about, is moved to ``quarantine/``, where the newest two are kept.
        A commit that cannot be read just now is left alone.

        Returns:
            The commits that were moved away.
        """
        self.wait()
        with _advice("cannot sweep the run folder", self.storage.describe("")):
            self._fence()
            rejected = sweep(self.storage)
            self._kept = {commit.key for commit in checked_commits(self.storage)}
            return rejected

    def roll_back(self, good: Callable[[dict[str, Json]], bool]) -> int | None:
        """Move the newest commits to ``quarantine/`` until one is good.

        Args:
            good: tells from the scalars of a commit's state.

        Returns:
            Step of the commit that is the newest now; None when none is left.
        """
        self.wait()
        with _advice("cannot roll back", self.storage.describe(CHECKPOINTS)):
            for key in published(self.storage):
                with suppress(UnusableError):
                    record = check(self.storage, key).files[STATE_NAME]
                    data = read_verified(self.storage, key, STATE_NAME, record)
                    if good(json.loads(data)["scalars"]):
                        return step_of(key)
                self._fence()
                quarantine(self.storage, key)
                self._kept.discard(key)
        return None

    # Reading

    def latest(self) -> Found:
        """The newest commit whose every byte is as it was written.

        Raises:
            StorageError: there are commits but none can be used: starting over would throw away
                work without anybody having decided so.
        """
        self.wait()
        rejected: list[Rejected] = []
        with _advice("cannot read checkpoints", self.storage.describe(CHECKPOINTS)):
            for key in published(self.storage):
                try:
                    commit = with_metrics(self.storage, key, verify(self.storage, key))
                except (UnusableError, OSError) as error:
                    if isinstance(error, OSError) or not was_cut_off(self.storage, key):
                        rejected.append(Rejected(self.storage.describe(key), str(error)))
                    continue
                if commit.damage is not None:
                    rejected.append(Rejected(commit.path, commit.damage))
                return Found(commit, tuple(rejected))
        if rejected:
            raise StorageError(
                "no checkpoint of this run can be used:\n"
                + "\n".join(f"  {item.describe()}" for item in rejected)
                + f"\nNext: restore one of them from a copy, or, to train from the beginning, move "
                f"{self.storage.describe(CHECKPOINTS)} away"
            )
        return Found(None, ())

    def commits(self) -> list[Commit]:
        """All commits, oldest first; their files are there, but were not read."""
        self.wait()
        return self._checked()[::-1]

    def best(self) -> Commit | None:
        """The verified commit with the best metric, the earliest of equals; None without scores.

        Commits that cannot be used, and of which one may be the best, are a warning.
        """
        self.wait()
        best, rejected = None, self._rejected()
        for commit in self.policy.ranked(self._checked()):
            try:
                verify(self.storage, commit.key)
            except (UnusableError, OSError) as error:
                rejected.append(Rejected(commit.path, str(error)))
                continue
            best = commit
            break
        for one in rejected:
            log.warning("not looked at for the best checkpoint: %s", one.describe())
        return best

    def load(self, step: int) -> TrainState:
        """The state committed after ``step`` steps; the bytes decoded are the bytes verified.

        Raises:
            StorageError: there is no such commit, or it is damaged.
        """
        state = decode(self.read_files(step))
        self._parent = step
        return state

    def read_files(self, step: int, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """Verified bytes of a commit's files.

        Args:
            step: of the commit.
            names: of the files; None for all.

        Raises:
            StorageError: there is no such commit or file, or it is damaged.
        """
        self.wait()
        reasons = []
        for key in self._published():
            if step_of(key) != step:
                continue
            try:
                files = check(self.storage, key).files
                wanted = files if names is None else list(names)
                absent = set(wanted) - set(files)
                if absent:
                    raise UnusableError(f"has no {', '.join(sorted(absent))}")
                return {
                    name: read_verified(self.storage, key, name, files[name]) for name in wanted
                }
            except (UnusableError, OSError) as error:
                reasons.append(Rejected(self.storage.describe(key), str(error)).describe())
        raise StorageError(
            "; ".join(reasons)
            or f"{self.storage.describe(CHECKPOINTS)}: no checkpoint of step {step}"
        )

    # The thread's side

    def _save(
        self,
        state: TrainState,
        config_digest: str,
        data_digest: str,
        label_map: str,
        log: LogMark | None,
    ) -> None:
        files = {**encode(state), LABEL_MAP: [label_map.encode()]}
        name = folder_name(state.step, None if self.storage.renames else uuid.uuid4().hex)
        key = f"{CHECKPOINTS}/{name}"
        staging = temporary(key) if self.storage.renames else key
        known = "none" if self._parent is None else f"that of step {self._parent}"
        with _advice(
            f"cannot commit step {state.step} (last commit: {known})", self.storage.describe(key)
        ):
            try:
                if self.storage.make_dir(CHECKPOINTS):
                    self.storage.sync_dir("")
                self.storage.make_dir(staging)
                records = {
                    n: write_recorded(self.storage, f"{staging}/{n}", chunks)
                    for n, chunks in files.items()
                }
                manifest = Manifest(
                    step=state.step,
                    config_digest=config_digest,
                    data_digest=data_digest,
                    parent=self._parent,
                    created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    files=records,
                    log=log,
                )
                existing = same_commit(self.storage, manifest, self._fence, besides=staging)
                if existing is None:
                    self._publish(staging, key, manifest)
            except BaseException:
                discard(self.storage, staging)
                raise
            if existing is not None:
                discard(self.storage, staging)
            folder = (existing or key).rpartition("/")[2]
            self.storage.replace_file(
                POINTER_NAME, seal("pointer", {"step": state.step, "folder": folder})
            )
            self._parent = state.step
            # One of this step that was damaged has made room for it.
            self._kept = {one for one in self._kept if step_of(one) != state.step}
            self._kept.add(f"{CHECKPOINTS}/{folder}")
            require_kept(self.storage, self._kept)
        self._collect()

    def _refresh(self) -> None:
        assert self._beside is not None
        try:
            self._beside()
        except StorageError as error:
            # The next commit tries again, and cannot do without.
            log.warning("%s", error)

    def _publish(self, staging: str, key: str, manifest: Manifest) -> None:
        if self._beside is not None:
            self._beside()
        self._fence()
        self.storage.write_file(f"{staging}/{MANIFEST_NAME}", [manifest.to_bytes()])
        if self.storage.renames:
            self.storage.sync_dir(staging)
            self._fence()
            self.storage.rename(staging, key)
            self.storage.sync_dir(CHECKPOINTS)

    def _attach(self, step: int, metrics: dict[str, float]) -> None:
        with _advice(f"cannot record the metrics of step {step}", self.storage.describe("")):
            for key in published(self.storage):
                if step_of(key) == step and not was_cut_off(self.storage, key):
                    if self._beside is not None:
                        self._beside()
                    self._fence()
                    content = seal_metrics(step, metrics, interim=self._interim(step))
                    self.storage.replace_file(f"{key}/{METRICS_NAME}", content)
                    return
        raise StorageError(
            f"{self.storage.describe(CHECKPOINTS)}: metrics for step {step}, which has no commit"
        )

    def _collect(self) -> None:
        with _advice("cannot remove old checkpoints", self.storage.describe(CHECKPOINTS)):
            self._kept -= collect(self.storage, self.policy, self._proven, self._fence)

    def _published(self) -> list[str]:
        with _advice("cannot list checkpoints", self.storage.describe(CHECKPOINTS)):
            return published(self.storage)

    def _rejected(self) -> list[Rejected]:
        """Commits, or their scores, that are there and can be told at a glance to be of no use."""
        rejected = []
        with _advice("cannot list checkpoints", self.storage.describe(CHECKPOINTS)):
            for key in published(self.storage):
                try:
                    damage = with_metrics(self.storage, key, check(self.storage, key)).damage
                except (UnusableError, OSError) as error:
                    damage = None if was_cut_off(self.storage, key) else str(error)
                if damage is not None:
                    rejected.append(Rejected(self.storage.describe(key), damage))
        return rejected

    def _checked(self) -> list[Commit]:
        with _advice("cannot list checkpoints", self.storage.describe(CHECKPOINTS)):
            return checked_commits(self.storage)


@contextmanager
def _advice(what: str, where: str) -> Iterator[None]:
    """Turn what the operating system says into what a user can act on."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{where}: {what}: {error}. Next: see that the disk is mounted, writable and not full, "
            "then run the same command again; it goes on from the newest whole checkpoint"
        ) from error
