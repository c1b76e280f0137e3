"""The thread that commits beside the steps, and its patience.

The client of an object store that does not answer asks again for some seconds. A run of days is not
to end because that was not enough: this thread has more time than that, and only the next commit
waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

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


class CommitThread:
    """Does what it is given one after the other, beside whoever gives it.

    Args:
        patient: whether a job is done again where a store did not answer.
    """

    def __init__(self, *, patient: bool) -> None:
        self._patient = patient
        self._executor: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done after all earlier ones.

        Raises:
            StorageError: one of those has gone wrong, see :meth:`wait`.
        """
        if any(done.done() and done.exception() for done in self._pending):
            self.wait()
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        work = partial(_patiently, job) if self._patient else job
        self._pending.append(self._executor.submit(work))

    def wait(self) -> None:
        """Return when everything is done.

        Raises:
            StorageError: the first thing that went wrong since the last call.
        """
        pending, self._pending = self._pending, []
        # What follows a failed save, such as its metrics, fails as a consequence.
        for error in [job.exception() for job in pending]:
            if error is not None:
                raise error

    def close(self) -> None:
        """:meth:`wait`, and end."""
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None


def _patiently(job: Callable[[], None]) -> None:
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
