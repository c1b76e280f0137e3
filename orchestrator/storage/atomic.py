"""Replacing a file in one piece."""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress
from pathlib import Path

from orchestrator.storage.address import TEMPORARY

#: Bytes of a name that its temporary name begins with; file systems take 255.
_KEPT_BYTES = 200


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old content or the new, never a part.

    Missing parent folders are made. The data is on the disk when the name is.

    Raises:
        OSError: nothing was replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        # As root even /dev/null could be replaced, and everybody's output would fill the file.
        raise OSError(errno.EEXIST, "a pipe or a device, which no file replaces", str(path))
    # Names of their own keep two writers apart; the last rename wins.
    # A name may be as long as the file system allows, so the temporary one has only its beginning.
    start = path.name.encode("utf-8", "surrogateescape")[:_KEPT_BYTES].decode("utf-8", "ignore")
    temporary = path.with_name(f".{start}{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            # Nobody knows the other name, and a full disk names none.
            error.filename = str(path)
        raise
