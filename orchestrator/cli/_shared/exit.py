"""How a command ends: errors made for people as a message, everything else as a bug."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from orchestrator.credentials import mask
from orchestrator.errors import OrchestratorError, printable
from orchestrator.storage.disk_errors import disk_refusal

_BUG = 70
_INTERRUPTED = 130


def run_guarded(function: Callable[[], int]) -> int:
    """Call ``function`` and turn whatever it raises into an exit code.

    Args:
        function: returns its own exit code.

    Returns:
        That code; the code of an :class:`OrchestratorError`, whose message is printed without a
        traceback; 71 where a disk was full; 130 after Ctrl-C; 70 for any other exception, with its
        traceback.
    """
    try:
        return function()
    except OrchestratorError as error:
        print(printable(mask(str(error))), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        refusal = disk_refusal(error)
        if refusal is not None:
            print(refusal, file=sys.stderr)
            return refusal.exit_code
        traceback.print_exc()
        print(
            "This is a bug in the program, not a mistake of yours; please report the lines above.",
            file=sys.stderr,
        )
        return _BUG
