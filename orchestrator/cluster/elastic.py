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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from orchestrator.cluster.controller import reserved_by_workers
from orchestrator.cluster.nodes import alive_nodes
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

    Args:
        numbers: of workers that the run may have, rising.
        now: workers of the attempt.
        placement: of each.
        ask: called once.
        look: looks at the nodes that have joined; raises :class:`~orchestrator.errors.ConfigError`
            where one lacks what the run needs. Then nobody is asked: the attempt would end, and no
            other could begin.
        vain: how often in a row more were asked for and then found no room; each time room has to
            be there for twice as long.

    Attributes:
        asked: whether it has.
        now: workers of the attempt.
    """

    def __init__(
        self,
        numbers: Sequence[int],
        now: int,
        placement: Placement,
        ask: Callable[[], None],
        *,
        look: Callable[[], None] = lambda: None,
        vain: int = 0,
    ) -> None:
        self.asked = False
        self.now = now
        self._more = [n for n in numbers if n > now]
        self._placement = placement
        self._ask = ask
        self._look = look
        self._looks = _LOOKS * 2**vain
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
            if found == self._looks and not self._may_grow():
                # Somebody may see to it, and is reminded now and then.
                found, self._looks = 0, 2 * self._looks
            elif found == self._looks:
                self.asked = True
                log.warning("room for more workers: the step under way is committed for them")
                self._ask()
                return

    def _may_grow(self) -> bool:
        """Whether nodes that have joined will do; says why not."""
        try:
            self._look()
        except ConfigError as error:
            log.warning("there is room for more workers, and none are taken: %s", error)
            return False
        except Exception as error:
            log.debug("the nodes could not be looked at: %s", error)
            return False
        return True

    def _has_room(self) -> bool:
        """Whether the next larger number will fit once this one has ended; false in doubt."""
        try:
            whole, free, ours = alive_nodes(), free_nodes(), reserved_by_workers()
        # Whatever Ray raises when its head is busy or gone must not end the search for good.
        except Exception as error:
            log.debug("no room could be looked for: %s", error)
            return False
        given_back = [
            replace(node, resources=_sum(node.resources, ours.get(node.id, {}))) for node in free
        ]
        more, placement = self._more[0], self._placement
        # The data tasks of this attempt hold a part of what those of the next one will need.
        return (
            shortage(more, placement, whole) is None
            and shortage(more, placement, given_back, data_cpus=0.0) is None
        )


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {*one, *other}}
