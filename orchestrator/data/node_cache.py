"""The folder of a node that holds what can be had again: ``data.cache``."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from orchestrator.errors import SecurityError
from orchestrator.storage.folders import storage_errors


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
