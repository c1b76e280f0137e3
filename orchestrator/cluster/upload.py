"""What ``ray job submit --working-dir`` would upload, measured before anything is sent.

Ray packs the folder without compression, leaves out what ``.gitignore``, ``.rayignore`` and its
own defaults name, and finds out that the package is too big only after packing and sending it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.errors import ConfigError

_log = logging.getLogger(__name__)

_MIB = 1024**2
#: Top-level folders a run cannot do without, so never the ones to leave out.
_NEEDED = frozenset({"orchestrator", "detectors", "native", "experiments"})
#: How many of the biggest files an error names.
_NAMED = 5

_Excludes = Callable[[Path], bool]


class UploadedFile(NamedTuple):
    """A file of the upload.

    Attributes:
        path: relative to the folder, with forward slashes; an empty folder ends in one.
        size: in bytes.
    """

    path: str
    size: int


class WorkingDirSize(NamedTuple):
    """How much would be uploaded.

    Attributes:
        bytes: of the package that Ray makes.
        files: how many are in it.
        biggest: the biggest of them, biggest first.
    """

    bytes: int
    files: int
    biggest: tuple[UploadedFile, ...]


def upload_limit() -> int:
    """Bytes that an upload must stay below: the smaller of the job server's and the store's."""
    constants, packaging = _ray()
    return min(int(constants.DASHBOARD_CLIENT_MAX_SIZE), int(packaging.GCS_STORAGE_MAX_SIZE))


def uploaded_files(root: Path, excludes: Sequence[str] = ()) -> list[UploadedFile]:
    """The files Ray would pack from ``root``, in no particular order.

    Args:
        root: the folder.
        excludes: patterns as in ``.gitignore``, beside those Ray finds itself.
    """
    constants, packaging = _ray()
    root = root.absolute()
    patterns = [*constants.get_runtime_env_default_excludes(), *excludes]
    with_gitignore = os.environ.get(constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    files = []
    unseen: list[tuple[Path, list[_Excludes]]] = [(root, [packaging._get_excludes(root, patterns)])]
    while unseen:
        path, rules = unseen.pop()
        is_folder = path.is_dir()
        if is_folder:
            rules = rules + packaging.get_excludes_from_ignore_files(
                path, include_gitignore=with_gitignore, logger=_log
            )
        if any(excluded(path) for excluded in rules):
            continue
        name = path.relative_to(root).as_posix()
        if path.is_file():
            files.append(UploadedFile(name, path.stat().st_size))
        elif is_folder:
            children = list(path.iterdir())
            unseen += [(child, rules) for child in children]
            if not children:
                files.append(UploadedFile(f"{name}/", 0))
    return files


def working_dir_size(root: Path, excludes: Sequence[str] = ()) -> WorkingDirSize:
    """Measure what Ray would upload from ``root``, leaving out ``excludes`` as well."""
    return _size(uploaded_files(root, excludes))


def check_working_dir(root: Path, excludes: Sequence[str] = ()) -> WorkingDirSize:
    """Measure what Ray would upload from ``root``.

    Raises:
        ConfigError: it is more than Ray takes; names the biggest files and the line to add.
    """
    size = working_dir_size(root, excludes)
    limit = upload_limit()
    if size.bytes < limit:
        return size
    listed = "\n".join(f"  {each.size / _MIB:9.1f} MiB  {each.path}" for each in size.biggest)
    raise ConfigError(
        f"{root}: found {size.bytes / _MIB:.1f} MiB in {size.files} files to upload; Ray takes "
        f"less than {limit / _MIB:.0f} MiB. The biggest are\n{listed}\n"
        f"Next: add the line {_exclude_line(size.biggest[0].path)} to {root / '.rayignore'}, and "
        f"put data where every node of the cluster can read it"
    )


def _size(files: Sequence[UploadedFile]) -> WorkingDirSize:
    # The package is a zip archive that stores: a header of 30 bytes before each file, an entry of
    # 46 at the end for each, both with its name, and 22 bytes that close the archive.
    content = sum(each.size + 76 + 2 * len(each.path.encode()) for each in files)
    biggest = sorted(files, key=lambda each: (-each.size, each.path))[:_NAMED]
    return WorkingDirSize(content + 22, len(files), tuple(biggest))


def _exclude_line(path: str) -> str:
    # No slash at the end: Ray would enter the folder and test each file in it.
    top = path.split("/", 1)[0]
    return f"/{path}" if top in _NEEDED else f"/{top}"


def _ray() -> tuple[Any, Any]:
    # Importing Ray takes about a second, which `orchestrator --help` need not wait for.
    from ray._private import ray_constants
    from ray._private.runtime_env import packaging

    return ray_constants, packaging
