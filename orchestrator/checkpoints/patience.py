"""Waiting for an object store that does not answer for a while.

Its client asks again for some seconds. A run of days is not to end because that was not enough: the
thread that commits beside the steps has more time than that, and only the next commit waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from orchestrator.errors import StorageError, first_line
from orchestrator.storage.address import StoreError

log = logging.getLogger(__name__)

#: Seconds between tries.
_WAITS = (2.0, 8.0, 30.0, 60.0, 120.0)
#: What stores say, in capital letters, that will be said again.
_LASTING = (
    *("ACCESS_DENIED", "PERMISSION_DENIED", "UNAUTHENTICATED", "EXPIRED_TOKEN", "NO_SUCH_BUCKET"),
    *("INVALID_ACCESS_KEY", "INVALID_CLIENT_TOKEN", "SIGNATURE_DOES_NOT_MATCH", "FORBIDDEN"),
)


def patiently(job: Callable[[], None]) -> None:
    """Do a job that may be begun anew, again where a store did not answer.

    Raises:
        StorageError: the store still does not, after some minutes; or for another reason, at once.
    """
    for wait in _WAITS:
        try:
            return job()
        except (StorageError, StoreError) as error:
            if not _may_pass(error):
                raise
            log.warning("%s; trying again in %g s", first_line(error), wait)
        time.sleep(wait)
    return job()


def _may_pass(error: BaseException | None) -> bool:
    """Whether a store is behind an error, and did not say that it will always be so."""
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error is not None and not any(word in str(error).upper() for word in _LASTING)
