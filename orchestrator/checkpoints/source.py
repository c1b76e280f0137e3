"""What a path stands for: the checkpoint of a run, a checkpoint, or a file of weights.

Every command and every key that names a detector comes through here, so that all of them take the
same checkpoint of a run and say the same of a file that cannot be read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detectors.weights.archives import UnsafeWeightsError, WeightsError
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.checkpoints.manifest import (
    MANIFEST_NAME,
    Commit,
    Manifest,
    checked_commits,
)
from orchestrator.config.resolve import load_experiment
from orchestrator.errors import DataError, SecurityError, StorageError
from orchestrator.storage.local import LocalStorage
from orchestrator.storage.plain_files import read_json
from orchestrator.storage.run_files import CHECKPOINTS, RESOLVED, RESULT
from orchestrator.storage.sealed import UnusableError

log = logging.getLogger(__name__)

#: What ranks the checkpoints of a run that does not say it.
_METRIC = "val/AP"
_MAX_MANIFEST_BYTES = 16 * 2**20


@contextmanager
def weights_errors(path: str | Path, *, setting: str | None = None) -> Iterator[None]:
    """Turn what is wrong with a file of weights into errors with their exit codes.

    Args:
        path: of the file, for messages that do not name it.
        setting: key or argument that names the file; None to leave it out.

    Raises:
        SecurityError: the file holds something that would run code.
        DataError: it cannot be read as weights.
    """
    before = "" if setting is None else f"{setting}: "
    try:
        yield
    except UnsafeWeightsError as error:
        raise SecurityError(f"{before}{error}") from error
    except WeightsError as error:
        name = "" if str(path) in str(error) else f"{path}: "
        raise DataError(f"{before}{name}{error}") from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = error.strerror or ("no such file" if missing else str(error))
        raise DataError(
            f"{before}{path} cannot be read ({reason}). Next: see that the path is right"
        ) from error


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run, which may get other checkpoints, and no checkpoint."""
    return (path / CHECKPOINTS).is_dir() and not (path / MANIFEST_NAME).is_file()


def checkpoint_of(path: Path, *, step: int | None = None) -> Path:
    """The checkpoint that a folder stands for.

    A checkpoint stands for itself. A run stands for its best checkpoint by
    ``train.checkpoint.metric``, as the scores beside its checkpoints say, or for its newest where
    none was scored; what other files of the run say does not matter, so that a run that was copied
    or interrupted stands for itself as well.

    Args:
        path: a folder.
        step: of the checkpoint of a run that is wanted instead.

    Raises:
        WeightsError: neither a run nor a checkpoint, or a run without any.
        StorageError: checkpoints are there, but none can be used; or none of this step.
    """
    if (path / MANIFEST_NAME).is_file():
        return path
    if not (path / CHECKPOINTS).is_dir():
        raise WeightsError(
            f"{path}: a folder without checkpoints: neither a run folder (it has no "
            f"{CHECKPOINTS}/) nor a checkpoint (it has no {MANIFEST_NAME}). Next: name the folder "
            "that training printed as `run folder`, one of its checkpoints or a file of weights"
        )
    store = CommitStore(LocalStorage(path), metric=_metric_of(path))
    if step is not None:
        commits = {commit.step: commit for commit in store.commits()}
        if step not in commits:
            raise StorageError(
                f"{path / CHECKPOINTS}: no checkpoint of step {step}; there are "
                f"{', '.join(map(str, commits)) or 'none'}"
            )
        return Path(commits[step].path)
    commit = store.best() or store.latest().commit
    if commit is None:
        raise WeightsError(
            f"{path}: a folder without checkpoints so far. Next: let the run train until its first"
        )
    _compare_with_result(path, commit)
    return Path(commit.path)


def require_committed(file: Path, sha256: str) -> None:
    """Refuse a file of a checkpoint whose bytes are not those that were committed.

    Args:
        file: beside a manifest; one that it does not list was put there by others.
        sha256: of its bytes, in hex.

    Raises:
        WeightsError: it is damaged, or its manifest is.
    """
    storage = LocalStorage(file.parent)
    try:
        content = storage.read_file(MANIFEST_NAME, limit=_MAX_MANIFEST_BYTES)
        record = Manifest.from_bytes(content).files.get(file.name)
    except (UnusableError, StorageError) as error:
        raise WeightsError(f"{file.with_name(MANIFEST_NAME)}: {error}") from error
    if record is not None and record.sha256 != sha256:
        raise WeightsError(
            f"{file}: does not match its digest in {MANIFEST_NAME}, so it is not what was "
            "committed. Next: use another checkpoint of the run, or copy it again"
        )


def _compare_with_result(run_dir: Path, chosen: Commit) -> None:
    """Say that a run that has ended called another of its checkpoints the best."""
    try:
        result = read_json(run_dir / RESULT)
        named, steps = Path(result["best_checkpoint"]).name, int(result["steps"])
    except (OSError, ValueError, TypeError, KeyError):
        return  # Or no checkpoint of the run was scored.
    commits = checked_commits(LocalStorage(run_dir))
    if named != Path(chosen.path).name and all(commit.step <= steps for commit in commits):
        log.warning(
            "%s: %s is taken, and %s calls %s the best, which is gone or has lost its scores",
            run_dir,
            chosen.key,
            RESULT,
            result["best_checkpoint"],
        )


def _metric_of(run_dir: Path) -> str:
    """What ranks the checkpoints of a run."""
    config = run_dir / RESOLVED
    if not config.is_file():
        return _METRIC
    return load_experiment(config).experiment.train.checkpoint.metric
