"""What a disk refuses, as errors that say what to do: everywhere, and with one exit code."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import StorageError
from orchestrator.storage.address import StoreError, unreachable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ELOOP}
#: What helps against those that more room does not help against.
_ADVICE = {
    errno.EROFS: "choose a place that can be written",
    errno.EFBIG: "raise the largest size of a file ('ulimit -f') or choose another disk",
    errno.ELOOP: "remove the links that lead to each other",
}
#: What libraries make of them that raise classes of their own.
_TEXTS = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "File too large": errno.EFBIG,
}


def disk_refusal(error: BaseException) -> StorageError | None:
    """The error to raise in place of one that says that a disk is full or cannot be written.

    Or that an object store does not answer.

    Args:
        error: any; what caused it is looked at, too.

    Returns:
        None where neither is to blame.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number not in _FULL:
            number = next((code for text, code in _TEXTS.items() if text in str(seen)), None)
        if number is not None:
            where = getattr(seen, "filename", None)
            place = f"{where}: " if where else ""
            reason = getattr(seen, "strerror", None) or next(iter(str(seen).splitlines()))
            advice = _ADVICE.get(number, "make room there")
            return StorageError(
                f"{place}{reason}. Next: {advice}, then run the same command again; a run goes on "
                "from its newest whole checkpoint"
            )
        if isinstance(seen, StoreError):
            return unreachable(seen.place, seen)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def run_folder_errors(run_dir: str | Path) -> Iterator[None]:
    """Turn what the operating system says of files of a run into advice.

    A file of a run that was replaced by a folder, or a folder by a file, is no bug in the program,
    and a disk that is full is not better at the next try.

    Raises:
        StorageError: in place of an OSError about a file in ``run_dir``, and of any error about a
            full disk.
    """
    root = Path(run_dir).absolute()
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        refusal = disk_refusal(error)
        if refusal is not None:
            raise refusal from error
        name = getattr(error, "filename", None)
        if not isinstance(error, OSError) or not isinstance(name, (str, Path)):
            raise
        if root not in (Path(name).absolute(), *Path(name).absolute().parents):
            raise
        raise StorageError(
            f"{name}: {error.strerror}. Next: see that the run folder is there, and that nothing "
            "else was put in place of what it holds, then run the same command again"
        ) from error
