"""What fits on a Ray cluster: devices, threads, and where a run evaluates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray

from orchestrator.accelerators import Accelerator, from_resources
from orchestrator.config.schema import ClusterConfig, Experiment
from orchestrator.errors import ConfigError, PreemptedError

#: How long a run waits for others to leave room, when it says so, and how often it looks.
ROOM_SECONDS, _MOMENT_SECONDS, _POLL_SECONDS = 600.0, 5.0, 0.5
#: Reading and augmenting needs at least this many CPUs beside the training workers.
DATA_CPUS = 1.0


@dataclass(frozen=True)
class Placement:
    """How the workers of one run sit on the cluster.

    Attributes:
        accelerator: the kind of device they train on.
        resources_per_worker: Ray resources each of them reserves.
        threads: torch threads of each worker.
    """

    accelerator: Accelerator
    resources_per_worker: dict[str, float]
    threads: int | None


def place(
    config: ClusterConfig, *, one_thread: bool = False, threads_before: int | None = None
) -> Placement:
    """Decide on devices and threads, and refuse what can never be scheduled.

    Args:
        config: the ``cluster`` section.
        one_thread: give CPU workers one thread where the file does not say, because the number of
            threads is part of the bits and must not follow from the number of workers.
        threads_before: that CPU workers had when the run began, if they are to have as many again;
            they have where the file does not say and the machine has as many cores.

    Raises:
        ConfigError: with the arithmetic, when the cluster is too small.
    """
    resources = ray.cluster_resources()
    accelerator = from_resources(config.accelerator, resources)
    each = {"CPU": config.cpus_per_worker}
    if accelerator.kind != "cpu":
        each[accelerator.ray_resource] = 1.0
    missing = _shortage(config.workers, each, resources)
    if missing is not None:
        raise ConfigError(
            f"cluster.workers: {missing}. Next: lower cluster.workers or "
            "cluster.cpus_per_worker, or add nodes"
        )
    threads = config.threads_per_worker
    if threads is None and accelerator.kind == "cpu":
        # One core stays free for reading data: torch's threads wait for each other by spinning, so
        # a thread too many costs far more than a thread too few.
        cores = os.cpu_count() or 1
        threads = 1 if one_thread else max(1, (cores - 1) // config.workers)
        if threads_before is not None and threads_before <= max(1, cores - 1):
            threads = threads_before
    return Placement(accelerator, each, threads)


class NoRoomError(PreemptedError):
    """The cluster is large enough, but others have not left room on it."""


def wait_for_room(workers: int, placement: Placement, say: Callable[[str], None]) -> None:
    """Wait until workers and data tasks fit beside what else runs on the cluster.

    Args:
        workers: that train.
        placement: what each of them takes.
        say: told what is waited for, when it takes longer than a moment.

    Raises:
        NoRoomError: in vain.
    """
    began, said = time.monotonic(), False
    while True:
        missing = _shortage(workers, placement.resources_per_worker, ray.available_resources())
        if missing is None:
            return
        waited = time.monotonic() - began
        if waited > ROOM_SECONDS:
            raise NoRoomError(
                f"cluster.workers: {missing} free, and had no more in {ROOM_SECONDS / 60:g} "
                "minutes. Next: end what else runs on the cluster, lower cluster.workers, or run "
                "the same command again later"
            )
        if waited > _MOMENT_SECONDS and not said:
            said = True
            say(f"waiting for room on the cluster, up to {ROOM_SECONDS / 60:g} min: {missing} free")
        time.sleep(_POLL_SECONDS)


def _shortage(
    workers: int, each: Mapping[str, float], have: Mapping[str, float], *, beside: bool = False
) -> str | None:
    """The arithmetic of what is missing for so many workers; None when nothing is.

    Args:
        workers: that train.
        each: what one of them takes.
        have: what there is.
        beside: whether one more evaluates.
    """
    for name, amount in each.items():
        spare = DATA_CPUS if name == "CPU" else 0.0
        wanted = (workers + beside) * amount + spare
        found = have.get(name, 0.0)
        if wanted > found:
            return (
                f"{f'({workers} + 1)' if beside else workers} workers x {amount:g} {name}"
                + (f" + {spare:g} {name} for reading data" if spare else "")
                + f" = {wanted:g} {name}, but the cluster has {found:g}"
            )
    return None


def place_evaluation(
    experiment: Experiment, placement: Placement, *, epochs: float, in_sweep: bool
) -> str | None:
    """Decide where a run evaluates; see ``train.evaluation``.

    Args:
        experiment: the run.
        placement: of its workers.
        epochs: that it trains.
        in_sweep: whether it shares the cluster with other trials.

    Returns:
        Why it does so in the loop; None where one more worker does it beside training.

    Raises:
        ConfigError: with the arithmetic, when it is to be beside and the cluster is too small.
    """
    train, cluster = experiment.train, experiment.cluster
    if train.evaluation == "in_loop":
        return "as train.evaluation says"
    if in_sweep:
        return "since other trials share the cluster"
    if train.early_stopping is not None:
        return "since train.early_stopping waits for the scores"
    if not train.evaluates_commits:
        return "since not every evaluation falls on a checkpoint"
    if epochs <= train.evaluate_every_epochs:
        return "since all of it comes after the last step"
    each = dict(placement.resources_per_worker)
    if train.evaluation == "beside":
        missing = _shortage(cluster.workers, each, ray.cluster_resources(), beside=True)
        if missing is not None:
            raise ConfigError(
                f"train.evaluation: beside takes one worker more: {missing}. Next: write auto or "
                "in_loop, lower cluster.workers or cluster.cpus_per_worker, or add nodes"
            )
        return None
    # A thread too many costs more than the loop does, whatever has been reserved.
    each["CPU"] = max(each["CPU"], placement.threads or 0)
    missing = _shortage(cluster.workers, each, ray.available_resources(), beside=True)
    return None if missing is None else f"since one worker more would make {missing} free"
