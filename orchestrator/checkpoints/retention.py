"""Which commits stay: deleting the old, moving the damaged aside, sweeping up after a kill.

Nothing here may ever cost a run its last good state: a commit is deleted only while two others
have been read back and found whole, and a reader never sees half of a commit that is going away.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.checkpoints.manifest import (
    MANIFEST_NAME,
    METRICS_NAME,
    POINTER_NAME,
    Commit,
    Manifest,
    Rejected,
    check,
    checked_commits,
    pointed,
    published,
    step_of,
    verify,
)
from orchestrator.errors import StorageError
from orchestrator.storage.address import TEMPORARY
from orchestrator.storage.local import Storage, temporary
from orchestrator.storage.run_files import CHECKPOINTS
from orchestrator.storage.sealed import UnusableError

#: Damaged commits are moved here, out of every reader's way, so that they can be looked into.
QUARANTINE = "quarantine"
_QUARANTINED = 2

#: Commits proven readable that are never deleted, whatever the policy says.
_LEAST_VERIFIED = 2


@dataclass(frozen=True)
class Policy:
    """What is kept of a run.

    Attributes:
        keep_last: newest commits.
        keep_best: commits by ``metric``, besides those.
        metric: name of the metric that ranks commits.
        sign: 1 when a larger value is better, -1 when a smaller one is.
        awaited: whether the commit of a step is going to be scored; until then it stays.

    A score that only a shortened run has (``train.max_steps``) ranks its commit as long as that is
    the newest one, and keeps it no longer: once the run goes on, its best checkpoint is that of a
    run that was never shortened.
    """

    keep_last: int
    keep_best: int
    metric: str
    sign: float
    awaited: Callable[[int], bool]

    def ranked(self, commits: Collection[Commit]) -> list[Commit]:
        """Commits that have a finite score, best first, the earliest of equals first."""
        newest = max((c.step for c in commits), default=0)
        counted = [c for c in commits if not c.interim or c.step == newest]
        scores = {c.key: (c.metrics or {}).get(self.metric, math.nan) for c in counted}
        finite = [c for c in counted if math.isfinite(scores[c.key])]
        return sorted(finite, key=lambda c: (-self.sign * scores[c.key], c.step, c.key))

    def keeps(self, newest_first: Sequence[Commit]) -> set[str]:
        """Keys of the commits that stay."""
        best = self.ranked([c for c in newest_first if not c.interim])[: self.keep_best]
        unscored = [c for c in newest_first if c.metrics is None and self.awaited(c.step)]
        return {commit.key for commit in (*newest_first[: self.keep_last], *best, *unscored)}


def collect(
    storage: Storage, policy: Policy, proven: set[str], fence: Callable[[], None]
) -> set[str]:
    """Delete the commits that ``policy`` does not keep.

    Args:
        storage: the run folder.
        policy: what to keep.
        proven: keys of commits this process has read back already; grows.
        fence: called before the first deletion.

    Returns:
        Keys of what was deleted.
    """
    newest_first = checked_commits(storage)
    keep = policy.keeps(newest_first)
    doomed = [commit.key for commit in newest_first if commit.key not in keep]
    if not doomed:
        return set()
    kept = [commit.key for commit in newest_first if commit.key in keep]
    missing = _LEAST_VERIFIED
    for key in (*kept, *doomed):
        if missing and _proves(storage, key, proven):
            keep.add(key)
            missing -= 1
    if missing:
        return set()
    fence()
    deleted = set(doomed) - keep
    for key in doomed:
        if key in deleted:
            proven.discard(key)
            _delete(storage, key)
    return deleted


def taken_away(storage: Storage, keys: Collection[str]) -> list[int]:
    """Steps of the commits among ``keys`` that are not there, in order."""
    listed = set(published(storage))
    # A listing that is cached elsewhere may lack one; its own folder tells.
    gone = [key for key in keys if key not in listed and not storage.list(key)]
    return sorted(step for key in gone if (step := step_of(key)) is not None)


def require_kept(storage: Storage, keys: Collection[str]) -> None:
    """Raise unless all of these commits are there.

    Raises:
        StorageError: with the steps of those that are not.
    """
    gone = taken_away(storage, keys) if keys else []
    if gone:
        raise say_taken_away(storage, gone)


def newest_taken_away(storage: Storage) -> int | None:
    """Step of the commit that the pointer names, where others have taken it away since.

    None where it is there, or was replaced or moved aside by the run itself; and where nothing is
    renamed, since a damaged commit is deleted there.
    """
    folder = pointed(storage) if storage.renames else None
    if folder is None:
        return None
    steps = taken_away(storage, [f"{CHECKPOINTS}/{folder}"])
    if not steps or any((step_of(key) or 0) > steps[0] for key in published(storage)):
        return None
    aside = any(entry.name.startswith(folder) for entry in storage.list(QUARANTINE))
    return None if aside else steps[0]


def say_taken_away(storage: Storage, steps: Sequence[int]) -> StorageError:
    """What a run gets to hear whose commits somebody else has removed."""
    many = len(steps) > 1
    return StorageError(
        f"{storage.describe(CHECKPOINTS)}: the checkpoint{'s' if many else ''} of step"
        f"{'s' if many else ''} {', '.join(map(str, steps))} of this run "
        f"{'are' if many else 'is'} gone, and the run did not delete {'them' if many else 'it'}. "
        "Next: put back what was removed or moved, if there is a copy, then run the same command "
        "again; it goes on from the newest checkpoint that is there"
    )


def _proves(storage: Storage, key: str, proven: set[str]) -> bool:
    if key not in proven:
        try:
            verify(storage, key)
        except (UnusableError, OSError):
            return False
        proven.add(key)
    return True


def _delete(storage: Storage, key: str) -> None:
    if storage.renames:
        doomed = temporary(key)
        storage.rename(key, doomed)
        discard(storage, doomed)
    else:
        storage.remove_tree(key, first=MANIFEST_NAME)


def discard(storage: Storage, key: str) -> None:
    """Delete an unfinished folder as far as possible; the next sweep sees to the rest."""
    with suppress(OSError):
        storage.remove_tree(key, first=MANIFEST_NAME)


def quarantine(storage: Storage, key: str) -> None:
    """Move a damaged commit aside; where nothing can be moved, delete it."""
    if not storage.renames:
        storage.remove_tree(key, first=MANIFEST_NAME)
        return
    if storage.make_dir(QUARANTINE):
        storage.sync_dir("")
    name = f"{key.rpartition('/')[2]}-{uuid.uuid4().hex}"
    storage.rename(key, f"{QUARANTINE}/{name}")
    storage.sync_dir(CHECKPOINTS)
    held = [entry.name for entry in storage.list(QUARANTINE) if entry.is_dir]
    for old in sorted(held)[:-_QUARANTINED]:
        storage.remove_tree(f"{QUARANTINE}/{old}")


def was_cut_off(storage: Storage, key: str) -> bool:
    """Whether this never became a commit: where nothing is renamed, the manifest comes last."""
    return not storage.renames and all(e.name != MANIFEST_NAME for e in storage.list(key))


def sweep(storage: Storage) -> list[Rejected]:
    """Remove what interrupted writers left; returns the damaged commits that were moved away."""
    for entry in storage.list(""):
        if entry.name.startswith(POINTER_NAME + TEMPORARY):
            storage.unlink(entry.name)
    for entry in storage.list(CHECKPOINTS):
        if entry.is_dir and TEMPORARY in entry.name:
            # What a process that is slow to die still writes is swept by the next start.
            discard(storage, f"{CHECKPOINTS}/{entry.name}")
    rejected = []
    for key in published(storage):
        for entry in storage.list(key):
            if entry.name.startswith(METRICS_NAME + TEMPORARY):
                storage.unlink(f"{key}/{entry.name}")
        try:
            check(storage, key)
        except OSError:
            continue  # As good as ever, perhaps, once the disk answers again.
        except UnusableError as error:
            if not was_cut_off(storage, key):
                rejected.append(Rejected(storage.describe(key), str(error)))
            quarantine(storage, key)
    return rejected


def same_commit(
    storage: Storage, manifest: Manifest, fence: Callable[[], None], *, besides: str
) -> str | None:
    """Key of a commit with this very content; damaged commits of the step are moved away.

    Args:
        storage: of the run.
        manifest: of the content.
        fence: called before one is moved; see
            :class:`~orchestrator.checkpoints.commit.CommitStore`.
        besides: key that does not count.

    Raises:
        StorageError: the step is committed with other content.
    """
    for key in published(storage):
        if key == besides or step_of(key) != manifest.step:
            continue
        try:
            existing = verify(storage, key)
        except UnusableError:
            fence()
            quarantine(storage, key)
            continue
        if existing.files == manifest.files:
            return key
        changed = sorted(
            name
            for name in {*existing.files, *manifest.files}
            if existing.files.get(name) != manifest.files.get(name)
        )
        raise StorageError(
            f"{storage.describe(key)}: step {manifest.step} is committed already with other "
            f"content ({', '.join(changed)}), so this run is not the one that made it. Next: start "
            "the run again, which goes on from that commit, or give it another name"
        )
    return None
