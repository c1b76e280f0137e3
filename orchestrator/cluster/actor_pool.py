"""Processes on the cluster that share out work, each with the resources of a training worker."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from orchestrator.cluster.connection import ClusterWatch, connected
from orchestrator.cluster.placement import place
from orchestrator.cluster.survey import Needed, look_around
from orchestrator.config.schema import ClusterConfig
from orchestrator.errors import OrchestratorError, PreemptedError, first_line

log = logging.getLogger(__name__)

#: Processes that a share may take with it before it is taken for the reason.
_LOSSES = 3
#: Seconds between looks at whether their cluster is still there.
_LOOK_SECONDS = 0.2


def actor_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """What ``ray.remote`` is told for an actor that reserves the resources of a worker.

    Args:
        resources: amounts by the names that Ray gives them, such as CPU, GPU and NPU.
    """
    amounts = dict(resources)
    return {
        "num_cpus": amounts.pop("CPU"),
        "num_gpus": amounts.pop("GPU", 0),
        "resources": amounts,
    }


def on_workers(
    cluster: ClusterConfig,
    worker: type,
    arguments: tuple[Any, ...],
    shares: Iterable[Any],
    *,
    workers: int,
    needed: Sequence[Needed],
) -> Iterator[Any]:
    """Results of shares as the workers finish them, in any order.

    What a lost process was at is done by another one.

    Args:
        cluster: where they run.
        worker: made in each process from ``arguments`` and the
            :class:`~orchestrator.accelerators.Accelerator`; its ``run`` is given one share.
        arguments: sent to the cluster once.
        shares: of the work.
        workers: processes.
        needed: what each node that may get one has to see.

    Raises:
        ConfigError: more workers than the cluster holds, or a node does not see what it needs.
        PreemptedError: all processes were lost, or one share took several of them with it.
        OrchestratorError: what a worker raised for people to read.
    """
    config = cluster.model_copy(update={"workers": workers})
    with connected(config), ClusterWatch() as watch:
        placement = place(config)
        look_around(needed)
        options = actor_options(placement.resources_per_worker)
        actor = ray.remote(**options)(worker)
        sent = [ray.put(argument) for argument in arguments]
        processes = [actor.remote(*sent, placement.accelerator) for _ in range(workers)]
        yield from share_out(processes, shares, watch.error)


def share_out(
    processes: Iterable[Any],
    shares: Iterable[Any],
    given_up: Callable[[], BaseException | None] = lambda: None,
) -> Iterator[Any]:
    """Results of ``run`` of every share, by whichever process is free.

    Args:
        processes: actors.
        shares: of the work.
        given_up: asked now and then whether waiting has become useless, and for the error that is
            then raised.
    """
    waiting = ((share, 0) for share in shares)
    again: deque[tuple[Any, int]] = deque()
    free, running = list(processes), dict[Any, tuple[Any, Any, int]]()
    lost: RayActorError | None = None
    while True:
        while free:
            following = again.popleft() if again else next(waiting, None)
            if following is None:
                break
            process, (share, losses) = free.pop(), following
            running[process.run.remote(share)] = process, share, losses
        if not running:
            break
        answers, _ = ray.wait(list(running), timeout=_LOOK_SECONDS)
        useless = given_up()
        if useless is not None:
            raise useless
        if not answers:
            continue
        (answer,) = answers
        process, share, losses = running.pop(answer)
        try:
            result = ray.get(answer)
        except RayActorError as error:
            lost, losses = error, losses + 1
            log.warning(
                "a process was lost; another one does what it was at: %s", first_line(error)
            )
            again.append((share, losses))
            if losses == _LOSSES:
                break
            continue
        except RayTaskError as error:
            # What a worker says for people is said here as it is, without its traceback.
            if isinstance(error.cause, OrchestratorError):
                raise error.cause from error
            raise
        free.append(process)
        yield result
    if again:
        raise PreemptedError(
            f"no process is left that works, or {_LOSSES} were lost at the same work: "
            f"{first_line(lost)}. Next: run the same command again"
        )
