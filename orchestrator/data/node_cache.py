"""The folder of a node that holds what can be had again: ``data.cache``."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import DataError, SecurityError
from orchestrator.storage.folders import Folder, storage_errors


def cache_folder(cache: str | None) -> Path:
    """``data.cache``, or what stands for it: a folder below the temporary one."""
    if cache is not None:
        return Path(cache)
    return Path(tempfile.gettempdir()) / f"orchestrator-cache-{os.getuid()}"


def private_folder(cache: str | None) -> Path:
    """The folder, made if need be, which must be this user's alone.

    Raises:
        SecurityError: somebody else could put images or boxes there.
        StorageError: it cannot be made.
    """
    folder = cache_folder(cache)
    with storage_errors(str(folder)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise SecurityError(
            f"{folder}: what is kept there is trained on, so nobody else may write to it, and this "
            "one is a link, another user's, or open to others. Next: chmod 700 it, or set "
            "data.cache to another one"
        )
    return folder


def fetch(folder: Folder, name: str, sha256: str, target: Path) -> bool:
    """Have a file of a bucket on this node; the first process that asks for it fetches it.

    Args:
        folder: in the bucket.
        name: of the file.
        sha256: of it, in hex.
        target: where it is to be; its folder is made if need be.

    Returns:
        Whether it was not there before.

    Raises:
        DataError: it is another file.
        FileNotFoundError: there is none.
        StorageError: it cannot be fetched or kept.
    """
    with storage_errors(str(target.parent)):
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if _touched(target):
            return False
        with _locked(target.with_suffix(".lock")):
            if _touched(target):
                return False
            _download(folder, name, sha256, target)
    return True


def _download(folder: Folder, name: str, sha256: str, target: Path) -> None:
    fresh = target.with_suffix(f".{uuid.uuid4().hex}.part")
    sha = hashlib.sha256()
    try:
        with fresh.open("xb") as file:
            for chunk in folder.chunks(name):
                sha.update(chunk)
                file.write(chunk)
        if sha.hexdigest() != sha256:
            raise DataError(another(folder.path(name), f"sha256 {sha256}", sha.hexdigest()))
        fresh.rename(target)
    finally:
        fresh.unlink(missing_ok=True)


def another(path: str, expected: str, found: str) -> str:
    """That a file of shards is not the one that was meant."""
    return (
        f"{path}: not the one that the index speaks of, which has {expected}; this one has "
        f"{found}\nwrite the shards again into a new folder: orchestrator shard"
    )


def _touched(path: Path) -> bool:
    """Whether the file is there; if so, it is the one that was used last."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
