"""Reading foreign files whole, without waiting for a pipe or filling the memory."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.errors import StorageError
from orchestrator.storage.plain_files import open_regular

#: Largest text of annotations that is read: several times what COCO, Objects365 and LVIS have.
MAX_TEXT_BYTES = 8 << 30
#: A larger text is read only once it has begun like one.
_LOOK_FIRST_BYTES = 1 << 24

#: What is said by a disk that fails, a mount whose other end is lost (NFS, or a bucket by FUSE) and
#: a machine out of memory or handles. Some have a number on some systems only.
_FAILED = {
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ENXIO", "ENODEV", "ENOMEDIUM", "EUCLEAN", "EBUSY", "EAGAIN"),
        *("ESTALE", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET"),
        *("ECONNABORTED", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),
        *("ENOLINK", "ECOMM", "EPROTO", "EKEYEXPIRED", "ENOKEY", "ENOMEM", "EMFILE", "ENFILE"),
    )
    if hasattr(errno, name)
}

#: Seconds between tries; in all well below the 30 after which a worker counts as hung.
_WAITS = (0.2, 1.0, 4.0)

T = TypeVar("T")


def storage_failed(error: OSError | ValueError) -> bool:
    """Whether reading failed for what a file lies on, or this machine, and not for the file."""
    return getattr(error, "errno", None) in _FAILED


def patiently(read: Callable[[], T]) -> T:
    """What ``read`` returns, tried again for some seconds while its storage fails.

    A run of days is not to end because a mount of a bucket or an NFS server hiccuped once.
    """
    for wait in _WAITS:
        try:
            return read()
        except OSError as error:  # noqa: PERF203 - waits are what it costs
            if not storage_failed(error):
                raise
            time.sleep(wait)
    return read()


def unread(place: Path | str, error: OSError | ValueError) -> StorageError:
    """The error for a file of which nothing is known, since its storage has failed."""
    return StorageError(
        f"{place}: cannot be read ({reason(error)}). This is what disks and mounts say that fail, "
        "not files that are bad. Next: see to that, then run the same command again"
    )


def read_text_bytes(path: Path, *, limit: int = MAX_TEXT_BYTES) -> bytes:
    """All bytes of a file of text, which is yet to be decoded.

    Raises:
        OSError: it cannot be read, is no file or too large, or large and begins with a null byte.
        StorageError: what it lies on has failed.
        ValueError: the path holds a null byte.
    """
    try:
        return patiently(partial(_text_bytes, path, limit))
    except OSError as error:
        if storage_failed(error):
            raise unread(path, error) from error
        raise


def _text_bytes(path: Path, limit: int) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(f"{size} bytes, allowed are {limit}")
        if size > _LOOK_FIRST_BYTES:
            if file.read(1) == b"\0":
                raise OSError("begins with a null byte; is this a text file?")
            file.seek(0)
        return file.read()


def sha256_of(path: Path) -> str:
    """SHA-256, in hex, of a file's bytes.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def reason(error: OSError | ValueError) -> str:
    """What went wrong, without the path."""
    return str(getattr(error, "strerror", None) or error)
