"""What a machine or an installation refuses, as errors that say what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from orchestrator.errors import ConfigError, OrchestratorError, StorageError

_OWN = ("orchestrator", "detectors", "native")
#: What libraries say, in lower case, where the system gives them no more memory.
_NO_MEMORY = (
    "cannot allocate memory",
    "can't allocate memory",
    "failed to map segment",
    "insufficient memory",
    "bad_alloc",
)


def machine_refusal(error: BaseException) -> OrchestratorError | None:
    """The error to raise in place of one for which the machine is to blame, not the program.

    Args:
        error: any.

    Returns:
        None where it may well be the program.
    """
    text = str(error) or type(error).__name__
    number = error.errno if isinstance(error, OSError) else None
    said = text.lower()
    if isinstance(error, MemoryError) or number == errno.ENOMEM or _any(said, _NO_MEMORY):
        return ConfigError(
            f"the machine gives this process no more memory ({_line(text)}). Next: free some, or "
            "raise what limits it, such as 'ulimit -v' or the memory of the container"
        )
    if "can't start new thread" in said or number == errno.EAGAIN:
        return ConfigError(
            f"the machine gives this user no more threads or processes ({_line(text)}). Next: "
            "raise what limits them, such as 'ulimit -u' or the pids of the container"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return ConfigError(
            f"the machine lets this process open no more files ({_line(text)}). Next: raise the "
            "limit: ulimit -n 4096"
        )
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in text:
        return StorageError(f"{_line(text)}. Next: set TMPDIR to a folder that can be written")
    if isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in ("", *_OWN):
        return ConfigError(
            f"a package of this Python environment cannot be imported: {_line(text)}. Next: see "
            "that no file of yours has its name and that PYTHONPATH names no other environment, "
            "or install again"
        )
    name = getattr(error, "filename", None)
    if isinstance(error, OSError) and number is not None and isinstance(name, (str, Path)):
        return StorageError(
            f"{name}: {error.strerror}. Next: see that it is there, is what the command expects, "
            "and may be read and written by this user"
        )
    return None


def _any(said: str, texts: tuple[str, ...]) -> bool:
    return any(text in said for text in texts)


def _line(text: str) -> str:
    return text.splitlines()[0].rstrip(".")
