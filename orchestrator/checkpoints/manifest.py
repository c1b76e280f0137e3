"""What a commit says about itself, read back with suspicion."""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import StorageError
from orchestrator.storage.local import Chunk, LocalStorage, Storage, temporary
from orchestrator.storage.run_files import CHECKPOINTS
from orchestrator.storage.sealed import UnusableError, seal, unseal
from orchestrator.tracking.events import LogMark

#: Layout of a commit folder; a reader refuses any other.
FORMAT = 1

MANIFEST_NAME = "MANIFEST.json"
METRICS_NAME = "METRICS.json"
POINTER_NAME = "COMMIT"

_MAX_SEALED_BYTES = 16 * 2**20
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# With renames a commit's folder is its step; without, an upload that was cut off must not share
# the folder of the one that follows it.
_FOLDER_NAME = re.compile(r"(\d{9,18})(-[0-9a-f]{32})?")


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


def write_recorded(storage: Storage, key: str, chunks: Iterable[Chunk]) -> FileRecord:
    """Write a file, and return what a manifest says of it."""
    digest = hashlib.sha256()
    size = 0

    def hashed() -> Iterator[Chunk]:
        nonlocal size
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            yield chunk

    storage.write_file(key, hashed())
    return FileRecord(size, digest.hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What a commit consists of and where it comes from.

    Attributes:
        step: optimizer steps behind it.
        config_digest: of the configuration that made it.
        data_digest: of the data it was trained on.
        parent: step of the commit it grew from; None for the first.
        created: wall clock, for people; nothing is ordered by it.
        files: by name.
        log: how far the event log was on the disk, before this commit; None in those of older
            programs and of runs without one.
    """

    step: int
    config_digest: str
    data_digest: str
    parent: int | None
    created: str
    files: dict[str, FileRecord]
    log: LogMark | None = None

    def to_bytes(self) -> bytes:
        """Content of ``MANIFEST.json``."""
        tree = {"format": FORMAT, **asdict(self)}
        if self.log is None:
            del tree["log"]
        return seal("manifest", tree)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Inverse of :meth:`to_bytes`.

        Raises:
            UnusableError: damaged.
            StorageError: intact, but written by a program with another layout.
        """
        tree = unseal("manifest", data)
        version = tree.pop("format", None)
        if version != FORMAT:
            raise StorageError(
                f"checkpoint manifest has format {version!r}; this program reads {FORMAT}. "
                "Next: go on with the version of the program that wrote it"
            )
        try:
            files = {name: FileRecord(**record) for name, record in tree.pop("files").items()}
            log = tree.pop("log", None)
            mark = None if log is None else LogMark(*map(int, log))
            manifest = cls(files=files, log=mark, **tree)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UnusableError("has other fields than a manifest") from error
        for name in files:
            if not _FILE_NAME.fullmatch(name):
                raise UnusableError(f"lists a file with the name {name!r}")
        return manifest


@dataclass(frozen=True)
class Commit:
    """One checkpoint.

    Attributes:
        key: of its folder in the run's storage.
        path: the same in full, absolute or a URI.
        manifest: what it consists of.
        metrics: attached to it so far; None before its evaluation.
        interim: whether only a run that was shortened has these metrics.
        damage: why metrics that are there are not used; None when nothing is wrong.
    """

    key: str
    path: str
    manifest: Manifest
    metrics: dict[str, float] | None
    damage: str | None = None
    interim: bool = False

    @property
    def step(self) -> int:
        """Optimizer steps behind it."""
        return self.manifest.step


@dataclass(frozen=True)
class Rejected:
    """A commit, or its metrics, that is not used, and why."""

    path: str
    reason: str

    def describe(self) -> str:
        """One line for a log."""
        return f"{self.path}: {self.reason}"


def folder_name(step: int, unique: str | None = None) -> str:
    """Name of the folder of step ``step``'s commit, zero-padded so that names sort by step."""
    return f"{step:09d}" if unique is None else f"{step:09d}-{unique}"


def step_of(key: str) -> int | None:
    """Step of the commit in a folder with this name or key; None when it is not a commit's."""
    match = _FOLDER_NAME.fullmatch(key.rpartition("/")[2])
    return int(match[1]) if match else None


def published(storage: Storage) -> list[str]:
    """Keys of all commit folders, good or bad, newest step first.

    The pointer's target is among them even when a cached folder listing does not show it yet, as
    happens on NFS.
    """
    names = {entry.name for entry in storage.list(CHECKPOINTS) if entry.is_dir}
    names = {name for name in names if step_of(name) is not None}
    with suppress(OSError):
        folder = pointed(storage)
        if folder is not None and folder not in names:
            names |= {folder} if storage.list(f"{CHECKPOINTS}/{folder}") else set()
    ordered = sorted(names, key=lambda name: (step_of(name), name), reverse=True)
    return [f"{CHECKPOINTS}/{name}" for name in ordered]


def pointed(storage: Storage) -> str | None:
    """Name of the folder that the pointer names, there or not; None where it names none."""
    try:
        folder = unseal("pointer", _read_sealed(storage, POINTER_NAME)).get("folder")
    except (UnusableError, OSError):
        return None
    return folder if isinstance(folder, str) and step_of(folder) is not None else None


def check(storage: Storage, key: str, *, renamed: bool = False) -> Manifest:
    """The manifest of a commit whose files all have the right size; their bytes are not read.

    Args:
        storage: where it is.
        key: of its folder.
        renamed: whether its folder may have another name than its step gives, as that of a copy.

    Raises:
        UnusableError: it is torn, damaged or not the commit its folder says.
        StorageError: it is intact, but of an unknown layout.
        OSError: it cannot be read.
    """
    try:
        data = _read_sealed(storage, f"{key}/{MANIFEST_NAME}")
    except FileNotFoundError as error:
        raise UnusableError(f"{MANIFEST_NAME} is missing") from error
    try:
        manifest = Manifest.from_bytes(data)
    except UnusableError as error:
        raise UnusableError(f"{MANIFEST_NAME} {error}") from error
    except StorageError as error:
        raise StorageError(f"{storage.describe(key)}: {error}") from error
    entries = {entry.name: entry for entry in storage.list(key)}
    if not renamed and manifest.step != step_of(key):
        raise UnusableError(f"{MANIFEST_NAME} is that of step {manifest.step}")
    for name, record in manifest.files.items():
        entry = entries.get(name)
        if entry is None or entry.is_dir:
            raise UnusableError(f"{name} is missing")
        if entry.size != record.size:
            raise UnusableError(f"{name} has {entry.size} bytes, not {record.size}")
    return manifest


def verify(storage: Storage, key: str, *, renamed: bool = False) -> Manifest:
    """Like :func:`check`, and every byte of every file has been compared with its digest."""
    manifest = check(storage, key, renamed=renamed)
    for name, record in manifest.files.items():
        digest = hashlib.sha256()
        for chunk in storage.read(f"{key}/{name}"):
            digest.update(chunk)
        if digest.hexdigest() != record.sha256:
            raise UnusableError(f"{name} does not match its digest")
    return manifest


def copy_commit(source: Storage, path: str, target: LocalStorage) -> Path:
    """Copy a commit of a run in a bucket to its working folder, verified, in place of any other.

    Args:
        source: storage of the run.
        path: of the commit, as :class:`Commit` has it.
        target: the working folder.

    Returns:
        The copy's folder.

    Raises:
        StorageError: it cannot be read, or not as it was written.
    """
    key = path.removeprefix(f"{source.describe('')}/")
    staging = temporary(key)
    try:
        shutil.rmtree(target.root / CHECKPOINTS, ignore_errors=True)
        target.make_dir(CHECKPOINTS)
        target.make_dir(staging)
        for entry in source.list(key):
            target.write_file(f"{staging}/{entry.name}", source.read(f"{key}/{entry.name}"))
        target.rename(staging, key)
        verify(target, key)
    except (OSError, UnusableError) as error:
        raise StorageError(
            f"{path}: cannot be copied to {target.root}: {error}. Next: run the same command again"
        ) from error
    return target.root / key


def with_metrics(storage: Storage, key: str, manifest: Manifest) -> Commit:
    """The commit whose manifest this is, with the metrics that can be trusted."""
    path = storage.describe(key)
    try:
        tree = _metrics_tree(storage, key)
        metrics = None if tree is None else _numbers(tree)
        interim = tree is not None and tree.get("interim") is True
        return Commit(key, path, manifest, metrics, interim=interim)
    except (UnusableError, OSError) as error:
        return Commit(key, path, manifest, None, str(error))


def checked_commits(storage: Storage) -> list[Commit]:
    """Commits whose files are there and can be read, newest first; see :func:`check`."""
    commits = []
    for key in published(storage):
        with suppress(UnusableError, OSError):
            commits.append(with_metrics(storage, key, check(storage, key)))
    return commits


def read_verified(storage: Storage, key: str, name: str, record: FileRecord) -> bytes:
    """One file's bytes, which are those its record describes.

    Raises:
        UnusableError: they are not.
        OSError: they cannot be read.
    """
    try:
        data = storage.read_file(f"{key}/{name}", limit=record.size)
    except StorageError as error:
        raise UnusableError(str(error)) from error
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise UnusableError(f"{name} does not match its digest")
    return data


def seal_metrics(step: int, metrics: Mapping[str, float], *, interim: bool = False) -> bytes:
    """Content of ``METRICS.json``. JSON has no NaN and no infinities; they are kept as text.

    Args:
        step: of the commit.
        metrics: by name.
        interim: whether only a run that was shortened has them.
    """
    values = {
        name: float(value) if math.isfinite(value) else str(float(value))
        for name, value in metrics.items()
    }
    tree = {"format": FORMAT, "step": step, "metrics": values}
    return seal("metrics", {**tree, "interim": True} if interim else tree)


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in tree["metrics"].items()}


def _metrics_tree(storage: Storage, key: str) -> dict[str, Any] | None:
    try:
        tree = unseal("metrics", _read_sealed(storage, f"{key}/{METRICS_NAME}"))
    except FileNotFoundError:
        return None
    except UnusableError as error:
        raise UnusableError(f"{METRICS_NAME} {error}") from error
    if tree.get("format") != FORMAT or tree.get("step") != step_of(key):
        raise UnusableError(f"{METRICS_NAME} is not that of this commit")
    return tree


def _read_sealed(storage: Storage, key: str) -> bytes:
    try:
        return storage.read_file(key, limit=_MAX_SEALED_BYTES)
    except StorageError as error:
        raise UnusableError("is too long") from error
