"""The folders that a Ray of a run's own leaves behind: logs, sockets, spilled objects.

Ray removes none of them, about half a megabyte a run.
"""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

#: Newest ones that are kept when what left them could not remove them, for whoever looks for why.
KEPT = 3
#: A Ray that starts has no socket for some seconds.
_STARTING_SECONDS = 300.0
#: Where Ray puts its sockets, and its link to the newest session.
_SOCKETS, _LATEST = "sockets", "session_latest"


def remove_session(session: Path) -> None:
    """Remove what a Ray that has ended has left; what cannot be removed stays.

    Args:
        session: its folder.
    """
    latest = session.parent / _LATEST
    with suppress(OSError):
        if latest.readlink() in (session, Path(session.name)):
            latest.unlink()
    shutil.rmtree(session, ignore_errors=True)


def remove_ended_sessions(folder: Path) -> None:
    """Remove what runs have left that were killed or failed, but the newest :data:`KEPT`.

    Args:
        folder: of the sessions of one user.
    """
    found = []
    for each in folder.glob("session_*"):
        with suppress(OSError):
            status = each.lstat()
            if stat.S_ISDIR(status.st_mode):
                found.append((status.st_mtime, each))
    for changed, session in sorted(found, reverse=True)[KEPT:]:
        if time.time() - changed >= _STARTING_SECONDS and not _answers(session):
            log.debug("%s: removed: its Ray has ended", session)
            remove_session(session)


def _answers(session: Path) -> bool:
    """Whether somebody listens at one of its sockets, in whatever container that is."""
    for each in (session / _SOCKETS).glob("*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(each))
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK):
                    return True  # Busy, or somebody else's: not to be removed.
            else:
                return True
    return False
