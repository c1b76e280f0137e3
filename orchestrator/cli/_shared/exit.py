"""How a command ends: errors made for people as a message, everything else as a bug."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

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
        traceback; 71 where a disk was full or a path cannot be used, the current folder among
        them; 64 where the machine gives no more memory, threads or open files; 130 after Ctrl-C;
        70 for any other exception, with its traceback. What becomes of its output ends no
        function: a reader such as ``head`` may have seen enough, and a disk that has no room for
        it is said at the end, with 71. An error that ``ends_at_once`` ends the process here.
    """
    _open_standard_streams()
    # Ray's core ends a process whose raylet is dead, silently and with 1. Unless told before Ray is
    # imported, it takes the parent for the raylet, and process 1, the parent under systemd and in
    # containers, for a dead one (Ray 2.60). It is told of a process that is there: this one.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())
    before = sys.stdout, sys.stderr
    said, told = _Lasting(sys.stdout, 1), _Lasting(sys.stderr, 2)
    sys.stdout, sys.stderr = said, told
    try:
        code = _guarded(function)
        said.flush()
        if said.failure is not None and not code:
            # What was to be said is not where it was to go.
            code = _refused(said.failure)
        told.flush()
    finally:
        sys.stdout, sys.stderr = before
    return code


class _Lasting:
    """A standard stream that goes on, into nothing, once what it leads to takes no more.

    Args:
        stream: to write to.
        number: its descriptor.

    Attributes:
        failure: why not everything arrived; None where it did, or where nobody reads on.
    """

    def __init__(self, stream: Any, number: int) -> None:
        self.failure: OSError | None = None
        self._stream = stream
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, as far as that is possible; the number of characters."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._lead_nowhere(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what is left, as far as that is possible."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lead_nowhere(error)

    def _lead_nowhere(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError) and self.failure is None:
            error.filename = ("standard output", "standard error")[self._number - 1]
            self.failure = error
        # Python would complain again when it exits.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._number)
        os.close(nowhere)
        with suppress(OSError):
            self._stream.flush()


def _guarded(function: Callable[[], int]) -> int:
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Masking())
    try:
        _require_current_folder()
        return function()
    except SystemExit as end:
        if end.code:  # None of ours: help ends with 0.
            raise
        return 0
    except KeyboardInterrupt:
        _tell("interrupted")
        return _INTERRUPTED
    except Exception as error:
        return _refused(error)


def _require_current_folder() -> None:
    """Refuse to work in a folder that is gone, at which libraries fail each in its own way.

    Raises:
        StorageError: it is.
    """
    try:
        Path.cwd()
    except OSError as error:
        raise StorageError(
            f"the current folder is gone ({error.strerror}). Next: cd to one that is there"
        ) from error


def _refused(error: Exception) -> int:
    """Say what an error means, and return its exit code."""
    known = error if isinstance(error, OrchestratorError) else None
    known = known or disk_refusal(error) or machine_refusal(error)
    if known is not None:
        _tell(printable(str(known)))
        if known.ends_at_once:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(known.exit_code)
        return known.exit_code
    _tell(mask("".join(traceback.format_exception(error))))
    _tell("This is a bug in the program, not a mistake of yours; please report the lines above.")
    return _BUG


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _open_standard_streams() -> None:
    """Give this process standard streams that take every text.

    Without any, it gets some that lead nowhere: the next file to be opened would take the free
    number otherwise, and what a library prints would go into that file.
    """
    for number in range(3):
        if not _is_open(number):
            os.open(os.devnull, os.O_RDWR)  # The lowest number that is free: this one.
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What the terminal's encoding lacks is written as its number and ends no command.
            stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
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
