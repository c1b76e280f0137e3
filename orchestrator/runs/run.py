"""A run that this process drives: where it lies, who holds it, and who is told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.manifest import checked_commits, verify
from orchestrator.checkpoints.retention import newest_taken_away, say_taken_away
from orchestrator.config.printing import dump_yaml
from orchestrator.config.resolve import ResolvedExperiment, load_experiment
from orchestrator.data.label_map import LabelMap, read_label_map
from orchestrator.errors import OrchestratorError, StorageError, say
from orchestrator.runs.identity import (
    Identity,
    RunState,
    experiment_trouble,
    record_run,
    recorded_identity,
)
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket import commit_storage
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.bucket_mirror import BucketMirror
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import Storage
from orchestrator.storage.run_files import CHECKPOINTS, EVENTS, IDENTITY, LABEL_MAP, RESOLVED
from orchestrator.storage.sealed import UnusableError
from orchestrator.tracking.events import lost_since


@dataclass(frozen=True)
class Run:
    """Made once a start, when the folder is this process's own.

    Attributes:
        folder: absolute; for a run in a bucket its working folder.
        folder_lock: held on the folder.
        mirror: of a run in a bucket, held; None for one in a folder.
        console: where progress is told.
    """

    folder: Path
    folder_lock: RunLock
    mirror: BucketMirror | None
    console: Console

    @property
    def commits(self) -> Storage:
        """Where its commits are."""
        return commit_storage(self.folder, None if self.mirror is None else self.mirror.location)

    @property
    def lock(self) -> RunLock | BucketLock:
        """What keeps others from the run, wherever it lies."""
        return self.folder_lock if self.mirror is None else self.mirror.lock

    def say(self, text: str) -> None:
        """Tell people one line."""
        say(self.console, text)

    def write(self, name: str, text: str) -> None:
        """Write one of its small files, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self.folder / name, text.encode("utf-8", "backslashreplace"))

    def describe(
        self,
        identity: Identity,
        resolved: ResolvedExperiment,
        claim: RunState,
        label_map: LabelMap,
        *,
        only_lost: bool = False,
    ) -> None:
        """Let the folder say what run it holds: its record, experiment and classes.

        Args:
            identity: of the run.
            resolved: its experiment.
            claim: what :func:`~orchestrator.runs.identity.examine_run` found.
            label_map: its classes.
            only_lost: leave alone what is there and sound, which is of the start that trained.
        """
        lost = self._lost(label_map) if only_lost else (IDENTITY, RESOLVED, LABEL_MAP)
        if IDENTITY in lost:
            record_run(self.folder, identity, resolved.tree, claim)
        if RESOLVED in lost:
            self.write(RESOLVED, dump_yaml(resolved))
        if LABEL_MAP in lost:
            self.write(LABEL_MAP, label_map.to_json())
        if only_lost and lost:
            self.say(f"missing or damaged, and written anew: {', '.join(lost)}")

    def _lost(self, label_map: LabelMap) -> list[str]:
        """What of the run's description is not there, or not what it was."""
        sound = []
        if recorded_identity(self.folder) is not None:
            sound.append(IDENTITY)
        with suppress(OrchestratorError):
            if experiment_trouble(self.folder) is None:
                load_experiment(self.folder / RESOLVED)
                sound.append(RESOLVED)
        with suppress(OrchestratorError):
            if read_label_map(self.folder / LABEL_MAP) == label_map:
                sound.append(LABEL_MAP)
        return [name for name in (IDENTITY, RESOLVED, LABEL_MAP) if name not in sound]

    def is_held(self) -> bool:
        """Whether the folder is there, and still that of this process."""
        try:
            self.folder_lock.require_in_place()
        except (StorageError, OSError):
            return False
        return True

    def done(self) -> int:
        """Steps behind its newest commit; says what was lost of it, and of what was measured."""
        newest = next(iter(checked_commits(self.commits)), None)
        gone = newest_taken_away(self.commits)
        if gone is not None:
            there = "at the beginning" if newest is None else f"after step {newest.step}"
            self.say(
                f"warning: {self.commits.describe(CHECKPOINTS)}: the checkpoint of step {gone}, "
                f"the newest that was made, is gone; the run goes on {there}"
            )
        if newest is None:
            return 0
        mark = newest.manifest.log
        lost = None if mark is None else lost_since(self.folder / EVENTS, mark)
        if lost is not None:
            self.say(f"warning: {EVENTS}: {lost} when step {newest.step} was committed")
        return newest.step

    def is_whole(self) -> bool:
        """Whether every byte of its newest commit is what was committed; says where it is not."""
        newest = next(iter(checked_commits(self.commits)), None)
        if newest is None:
            return False
        try:
            verify(self.commits, newest.key)
        except (UnusableError, OSError) as error:
            self.say(f"warning: {newest.path}: {error}; the run goes on from the one before")
            return False
        return True

    def require_commit(self, step: int) -> None:
        """Refuse an end that left nothing where the run is said to be.

        Args:
            step: at which the workers say they have ended.

        Raises:
            StorageError: the newest commit is another one.
        """
        newest = next(iter(checked_commits(self.commits)), None)
        if newest is not None and newest.step == step:
            return
        there = "no checkpoint" if newest is None else f"only the checkpoint of step {newest.step}"
        raise StorageError(
            f"{self.commits.describe('')}: the workers have ended at step {step}, but there is "
            f"{there}. Next: see that this folder was not moved or emptied meanwhile, then run "
            "the same command again"
        )


class NewestCommit:
    """Which commit an attempt goes on from; asked by the driver before each.

    Args:
        store: of the run.
    """

    def __init__(self, store: CommitStore) -> None:
        self._store = store
        self._gone_before = newest_taken_away(store.storage)

    def __call__(self) -> int | None:
        """Step of the newest verified commit; None where there is none.

        Raises:
            StorageError: since this start began, others have removed a newer one. Going on would
                train its steps again, and say nothing.
        """
        found = self._store.latest()
        gone = newest_taken_away(self._store.storage)
        if gone is not None and gone != self._gone_before:
            raise say_taken_away(self._store.storage, [gone])
        return None if found.commit is None else found.commit.step
