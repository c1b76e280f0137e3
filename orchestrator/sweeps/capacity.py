"""How many trials a cluster can run at a time without any of them waiting for another.

A trial needs all its workers at once, and a CPU that reads data for them. Workers that got their
places while their data waits for the CPUs of other workers would wait for ever, so trials are
started only as far as everything fits together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster.placement import DATA_CPUS
from orchestrator.errors import ConfigError

_EPSILON = 1e-9


@dataclass(frozen=True)
class Capacity:
    """What fits.

    Attributes:
        trials: at a time.
        text: the arithmetic.
    """

    trials: int
    text: str


def capacity(
    nodes: Sequence[Mapping[str, float]], each: Mapping[str, float], workers: int
) -> Capacity:
    """How many trials fit together.

    Args:
        nodes: resources of every node.
        each: what one worker reserves, all of it on one node.
        workers: of one trial.
    """
    most = sum(_slots(node, each) for node in nodes) // workers
    found = next((t for t in range(most, 0, -1) if _fits(nodes, each, workers, t)), 0)
    needs = " and ".join(f"{amount:g} {name}" for name, amount in each.items())
    totals = {
        name: sum(node.get(name, 0.0) for node in nodes) for name in dict.fromkeys(["CPU", *each])
    }
    have = ", ".join(f"{amount:g} {name}" for name, amount in totals.items())
    text = (
        f"one trial takes {workers} worker{'s' if workers > 1 else ''} x {needs}, plus "
        f"{DATA_CPUS:g} CPU for reading data; the cluster has {have} on {len(nodes)} "
        f"node{'s' if len(nodes) > 1 else ''}, enough for {found} at a time"
    )
    return Capacity(found, text)


def _slots(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Workers that fit one node."""
    return min(math.floor(node.get(name, 0.0) / amount + _EPSILON) for name, amount in each.items())


def _fits(
    nodes: Sequence[Mapping[str, float]], each: Mapping[str, float], workers: int, trials: int
) -> bool:
    """Whether so many trials fit: workers first, data tasks into the CPUs that are left."""
    left = workers * trials
    readers = 0
    for node in nodes:
        here = min(left, _slots(node, each))
        left -= here
        free = node.get("CPU", 0.0) - here * each.get("CPU", 0.0)
        readers += math.floor(free / DATA_CPUS + _EPSILON)
    return left == 0 and readers >= trials


def agreed(found: Capacity, wanted: int | None, trials: int) -> int:
    """Trials to run at a time.

    Args:
        found: what fits.
        wanted: ``sweep.concurrency``.
        trials: that there are.

    Raises:
        ConfigError: not one fits, or more are wanted than fit.
    """
    if found.trials == 0:
        raise ConfigError(
            f"cluster.workers: no trial can ever start: {found.text}. Next: lower "
            "cluster.workers or cluster.cpus_per_worker, or add nodes"
        )
    if wanted is not None and wanted > found.trials:
        raise ConfigError(
            f"sweep.concurrency is {wanted}, which can never be placed: {found.text}. Next: set "
            f"sweep.concurrency to {found.trials} or less, or add nodes"
        )
    return max(1, min(trials, wanted or found.trials))
