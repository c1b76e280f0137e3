"""How a command ends: errors made for people as a message, everything else as a bug."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable

from orchestrator.credentials import mask
from orchestrator.errors import OrchestratorError, printable
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
        traceback; 71 where a disk was full; 130 after Ctrl-C; 0 where the reader of the output,
        such as ``head``, has seen enough; 70 for any other exception, with its traceback.
    """
    try:
        return _guarded(function)
    finally:
        _let_go_of_output()


def _guarded(function: Callable[[], int]) -> int:
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Masking())
    try:
        return function()
    except OrchestratorError as error:
        print(printable(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _let_go_of_output():
            return 0
        refusal = disk_refusal(error)
        if refusal is not None:
            print(refusal, file=sys.stderr)
            return refusal.exit_code
        print(mask(traceback.format_exc()), file=sys.stderr)
        print(
            "This is a bug in the program, not a mistake of yours; please report the lines above.",
            file=sys.stderr,
        )
        return _BUG


def _let_go_of_output() -> bool:
    """Write what is left to standard output; whether somebody reads it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
