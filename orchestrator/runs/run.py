"""A run that this process drives: where it lies, who holds it, and who is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from orchestrator.checkpoints.manifest import checked_commits
from orchestrator.errors import StorageError, say
from orchestrator.storage.atomic import write_atomic
from orchestrator.storage.bucket import commit_storage
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.bucket_mirror import BucketMirror
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.local import Storage
from orchestrator.storage.run_files import EVENTS
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

    def is_held(self) -> bool:
        """Whether the folder is there, and still that of this process."""
        try:
            self.folder_lock.require_in_place()
        except (StorageError, OSError):
            return False
        return True

    def done(self) -> int:
        """Steps behind its newest commit; says when the log has lost what was measured in them."""
        newest = next(iter(checked_commits(self.commits)), None)
        if newest is None:
            return 0
        mark = newest.manifest.log
        lost = None if mark is None else lost_since(self.folder / EVENTS, mark)
        if lost is not None:
            self.say(f"warning: {EVENTS}: {lost} when step {newest.step} was committed")
        return newest.step

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
