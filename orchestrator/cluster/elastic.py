"""A number of workers that follows the cluster: ``cluster.workers: {min: 1, max: 4}``.

A batch is computed in virtual shards, as many as the most workers, and each number of workers that
divides them ends in the same bits. So a run takes the largest such number that there is room for;
when a node is lost it goes on with fewer, and when room appears the step under way is committed and
the run goes on with more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ray.exceptions import RayError

from orchestrator.cluster.placement import Placement, free_nodes, shortage
from orchestrator.errors import ConfigError
from orchestrator.training.job import TrainingJob

log = logging.getLogger(__name__)

#: Seconds until what an attempt had is free again.
RELEASE_SECONDS = 4.0
#: Seconds between two looks for more room, and looks in a row that have to find it: starting with
#: more workers costs what starting again costs.
_LOOK_SECONDS = 5.0
_LOOKS = 2


def numbers_of_workers(job: TrainingJob) -> list[int]:
    """How many workers a run may have, rising; one number where its file names one.

    Raises:
        ConfigError: none divides the shards that the run began with.
    """
    cluster = job.experiment.cluster
    if cluster.min_workers is None:
        return [cluster.workers]
    shards = job.shards.count or 1
    numbers = [n for n in range(cluster.min_workers, cluster.workers + 1) if shards % n == 0]
    if not numbers:
        raise ConfigError(
            f"cluster.workers is {cluster.min_workers} to {cluster.workers}, and the run computes "
            f"each batch in {shards} parts, which none of these divides. Next: let "
            "cluster.workers.min be smaller"
        )
    return numbers


def with_workers(job: TrainingJob, workers: int) -> TrainingJob:
    """The job for an attempt with so many workers."""
    if job.experiment.cluster.min_workers is None:
        return job
    cluster = job.experiment.cluster.model_copy(update={"workers": workers, "min_workers": None})
    return replace(job, experiment=job.experiment.model_copy(update={"cluster": cluster}))


def most_that_fit(numbers: Sequence[int], placement: Placement, *, seconds: float = 0.0) -> int:
    """The largest number that there is room for; the smallest where there is for none.

    Args:
        numbers: rising.
        placement: of the workers.
        seconds: to wait for the largest, since what an attempt had is free a moment after its end.
    """
    deadline = time.monotonic() + seconds
    while True:
        nodes = free_nodes()
        fitting = [n for n in numbers if shortage(n, placement, nodes) is None]
        if numbers[-1] in fitting or time.monotonic() >= deadline:
            return max(fitting, default=numbers[0])
        time.sleep(0.5)


class Growth:
    """Looks for room for more workers while an attempt trains, and asks it to stop for them.

    Attributes:
        asked: whether it has.
    """

    def __init__(
        self, numbers: Sequence[int], now: int, placement: Placement, ask: Callable[[], None]
    ) -> None:
        self.asked = False
        self._more = [n for n in numbers if n > now]
        self._now = now
        self._placement = placement
        self._ask = ask
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look while the block runs."""
        if not self._more:
            yield
            return
        thread = threading.Thread(target=self._watch, name="growth", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self) -> None:
        found = 0
        while not self._over.wait(_LOOK_SECONDS):
            found = found + 1 if self._has_room() else 0
            if found == _LOOKS:
                self.asked = True
                log.warning("room for more workers: the step under way is committed for them")
                self._ask()
                return

    def _has_room(self) -> bool:
        """Whether the next larger number fits; false where nobody answers."""
        try:
            nodes = free_nodes()
        except (RayError, ConnectionError, TimeoutError):
            return False
        return shortage(self._more[0] - self._now, self._placement, nodes) is None
