"""Which version of the code is running."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

#: Set for a job, whose uploaded folder has no history: a full hash, and a ``+`` when dirty.
COMMIT_VARIABLE = "ORCHESTRATOR_COMMIT"

_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class GitInfo:
    """State of a working tree.

    Attributes:
        commit: full hash.
        dirty: whether a tracked file differs from it.
    """

    commit: str
    dirty: bool

    def __str__(self) -> str:
        return f"{self.commit} with uncommitted changes" if self.dirty else self.commit


def git_info(file: Path = Path(__file__)) -> GitInfo | None:
    """The commit that ``file`` belongs to, by default that of this program.

    Where there is no git, no repository, or one that does not track the file (a package installed
    inside somebody's project is not that project), the commit a job was submitted from, or None.
    """
    tracked = _git(file.parent, "ls-files", "--error-unmatch", file.name)
    commit = _git(file.parent, "rev-parse", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no", ":/")
    if tracked is None or commit is None or changes is None:
        told = re.fullmatch(r"([0-9a-f]{40,64})(\+?)", os.environ.get(COMMIT_VARIABLE, ""))
        return None if told is None else GitInfo(commit=told[1], dirty=bool(told[2]))
    return GitInfo(commit=commit, dirty=bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None when it cannot be run or fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_SECONDS,
            # Only looking must not lock the repository against its user.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip()
