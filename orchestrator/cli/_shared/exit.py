"""How a command ends: errors made for people as a message, everything else as a bug."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orchestrator.credentials import mask
from orchestrator.errors import ConfigError, OrchestratorError, StorageError, printable
from orchestrator.storage.disk_errors import disk_refusal

_BUG = 70
_INTERRUPTED = 130


class _Masking(logging.Formatter):
    """Warnings of this program and of libraries, without the keys that addresses in them carry."""

    def format(self, record: logging.LogRecord) -> str:
        return mask(super().format(record))


def run_guarded(function: Callable[[], int]) -> int:
    """Call ``function`` and turn whatever it raises into an exit code.

    Args:
        function: returns its own exit code.

    Returns:
        That code; the code of an :class:`OrchestratorError`, whose message is printed without a
        traceback; 71 where a disk was full or a path cannot be used; 64 where the machine gives
        no more memory, threads or open files; 130 after Ctrl-C; 0 where the reader of the output,
        such as ``head``, has seen enough; 70 for any other exception, with its traceback.
    """
    _open_standard_streams()
    code = _guarded(function)
    try:
        _let_go_of(sys.stdout, 1)
    except OSError as error:
        # What was to be said is not where it was to go.
        code = code or _refused(error)
    with suppress(OSError):
        _let_go_of(sys.stderr, 2)
    return code


def _guarded(function: Callable[[], int]) -> int:
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Masking())
    try:
        return function()
    except KeyboardInterrupt:
        _tell("interrupted")
        return _INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _let_go_of(sys.stdout, 1):
            return 0
        return _refused(error)


def _refused(error: Exception) -> int:
    """Say what an error means, and return its exit code."""
    known = error if isinstance(error, OrchestratorError) else None
    known = known or disk_refusal(error) or machine_refusal(error)
    if known is not None:
        _tell(printable(str(known)))
        return known.exit_code
    _tell(mask("".join(traceback.format_exception(error))))
    _tell("This is a bug in the program, not a mistake of yours; please report the lines above.")
    return _BUG


def _tell(text: str) -> None:
    # With standard error on a full disk the exit code is all that is left.
    with suppress(OSError):
        print(text, file=sys.stderr)


def _open_standard_streams() -> None:
    """Give whoever started this process without standard streams ones that lead nowhere.

    The next file to be opened would take the free number otherwise, and what a library prints
    would go into that file.
    """
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free: this one.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _let_go_of(stream: object, number: int) -> bool:
    """Write what is left to a standard stream; whether somebody reads it.

    Raises:
        OSError: it cannot be written, and whoever can was not asked to go away.
    """
    try:
        stream.flush()  # type: ignore[attr-defined]
    except OSError as error:
        # Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if isinstance(error, BrokenPipeError):
            return False
        raise
    return True


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
