"""What a verb is to write, as types of arguments: refused before its work, not after."""

from __future__ import annotations

import os
import re
from pathlib import Path

from orchestrator.errors import ConfigError, StorageError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def file_to_write(text: str) -> Path:
    """A file that is to be made or replaced.

    Raises:
        ConfigError: it is not on this machine.
        StorageError: a folder has this name, or nothing can be written there.
    """
    path = _on_this_machine(text)
    if path.is_dir():
        raise StorageError(f"{path}: is a folder. Next: name a file, such as {path / 'NAME'}")
    _require_writable(path.absolute().parent)
    return path


def folder_to_fill(text: str) -> Path:
    """A folder that is to be made, if it is not there, and written to.

    Raises:
        ConfigError: it is not on this machine.
        StorageError: a file has this name, or nothing can be written there.
    """
    path = _on_this_machine(text)
    _require_writable(path.absolute())
    return path


def _on_this_machine(text: str) -> Path:
    if _URI.match(text):
        raise ConfigError(
            f"{text}: is no path of this machine, and would become a folder called "
            f"'{text.partition('/')[0]}'. Next: name a path, and copy what is there afterwards"
        )
    return Path(text)


def _require_writable(folder: Path) -> None:
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        raise StorageError(
            f"{there}: is a file, where a folder is to be written to. Next: name another place"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(
            f"{there}: may not be written by this user. Next: name another place, or have its "
            "owner allow it"
        )
