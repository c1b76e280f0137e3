"""Running a training job on Ray Train V2 and starting it again while it makes progress.

Ray restarts nothing here: each attempt is a trainer of its own with a fresh name, and the truth
about where to go on is the newest verified commit. Ray's snapshot of its own checkpoints, which
lags and can be torn, is therefore never read.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.cluster.control import DriverLostError, RelayedStorage, start_control
from orchestrator.cluster.controller import WatchedTrainer, free_orphans
from orchestrator.cluster.elastic import (
    RELEASE_SECONDS,
    Growth,
    most_that_fit,
    numbers_of_workers,
    with_workers,
)
from orchestrator.cluster.evaluator import RayEvaluator
from orchestrator.cluster.heartbeat import Beat, HangWatch, Heartbeat, end_if_still
from orchestrator.cluster.network import UnreachedError
from orchestrator.cluster.nodes import alive_nodes, this_node
from orchestrator.cluster.placement import Placement, share_of_node, wait_for_room
from orchestrator.cluster.preload import WORKER
from orchestrator.cluster.process_group import ProcessGroupConfig
from orchestrator.cluster.relay import Way
from orchestrator.cluster.spares import Spares
from orchestrator.cluster.stop_wish import StopWish
from orchestrator.data.stream.ray_streams import RayStreams
from orchestrator.data.stream.slots import ROLE
from orchestrator.errors import OrchestratorError, PreemptedError, StorageError
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.run_files import HEARTBEATS
from orchestrator.training.collective import collective_timeout
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.session import run_rank

log = logging.getLogger(__name__)

#: A task on the node of a rank that stands still has to start and end within this.
_KILL_SECONDS = 30.0

#: Nodes get so long to reach each other before an attempt, where ``cluster.hang_timeout`` is null.
_REACH_SECONDS = 60.0

#: Ray restarts nothing by itself; releases that know preemptions do so after one, for ever, unless
#: they are told.
_NO_RESTARTS = {
    name: 0
    for name in ("max_failures", "max_preemption_failures")
    if name in FailureConfig.__dataclass_fields__
}


class HungError(Exception):
    """A worker stood still and was killed."""


def _worker(given: dict[str, Any]) -> dict[str, Any]:
    """What runs in every Ray Train worker."""
    config: dict[str, Any] = ray.get(given["config"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    job: TrainingJob = config["job"]
    placement: Placement = config["placement"]
    way: Way = config["way"]
    beats = Path(config["beats"])
    if placement.by_node:
        cpus = next((node.cpus for node in alive_nodes() if node.id == this_node()), 1.0)
        threads = share_of_node(cpus, context.get_local_world_size())
        job = dataclasses.replace(job, threads=threads)
    timeout = job.experiment.cluster.hang_timeout
    alive: AbstractContextManager[Any] = nullcontext()
    if timeout is not None:
        send = way.signs(str(beats))
        alive = Heartbeat(beats, rank, timeout, node=this_node(), send=send)
    streams: RayStreams = config["streams"]
    stream = streams.stream(
        rank,
        context.get_world_size(),
        node=this_node(),
        on_node=context.get_local_world_size(),
    )
    accelerator = placement.accelerator
    evaluator = None
    if job.evaluates_beside and rank == 0:
        evaluator = RayEvaluator(
            job, stream.plan_ref, accelerator, placement.resources_per_worker, beats, way
        )
    expected: int | None = config["expected"]
    if expected is not None:
        stream.expect(expected, job.total_steps)
    with closing(stream), alive, way.working(job, main=rank == 0) as (here, courier):
        outcome = run_rank(
            here,
            stream,
            accelerator=accelerator,
            local_rank=context.get_local_rank(),
            evaluator=evaluator,
            bring=None if courier is None else courier.push,
        )
    return outcome.to_json()


@dataclasses.dataclass(frozen=True)
class Hold:
    """What the driver has of a run while it trains.

    Attributes:
        last_commit: newest verified commit's step; asked after a failure.
        lock: on the run; every attempt fences off the workers of the one before.
        folder: the lock on the driver's folder, which is the same one for a run in a folder.
        marker: name of a file in that folder by which it is told from others at the same path;
            None where there is no other node.
        look: told how many steps are done, looks at the nodes that have joined, and raises
            :class:`~orchestrator.errors.ConfigError` where one lacks what the run needs.
    """

    last_commit: Callable[[], int | None]
    lock: RunLock | BucketLock
    folder: RunLock
    marker: str | None
    look: Callable[[int], None]


def fit(
    job: TrainingJob, streams: RayStreams, placement: Placement, hold: Hold, stop: StopWish
) -> Outcome:
    """Train until done, starting again after a failure as long as commits advance.

    A node that its cloud takes back is no failure, however often it happens.

    Args:
        job: what to train.
        streams: of the ranks' ordered batches.
        placement: resources of the workers.
        hold: of the driver.
        stop: asks the workers to commit and end.

    Raises:
        ConfigError: a node that has joined lacks what the run needs.
        OrchestratorError: the cause of the last failure, after ``train.max_failures`` attempts
            without a new commit between them.
        PreemptedError: it was asked to stop between two attempts, or there is no room for another.
    """
    experiment = job.experiment
    fruitless = vain = 0
    patience = 1.0
    numbers = numbers_of_workers(job)
    spares = Spares.of(job)
    growth: Growth | None = None
    while True:
        grows = growth is not None and growth.asked
        stop.begin_attempt(for_others=grows)
        before = hold.last_commit()
        try:
            workers = numbers[0]
            if len(numbers) > 1 or growth is not None:
                # Beside trials, which share what they need among them, only nodes are waited for;
                # so after a commit, when what this run had is about to be free again.
                wait_for_room(
                    workers,
                    placement,
                    log.warning,
                    beside_others=len(numbers) > 1 or (fruitless > 0 and not job.sampled),
                    check=stop.check,
                )
            if len(numbers) > 1:
                seconds = 0.0 if growth is None else RELEASE_SECONDS
                workers = most_that_fit(numbers, placement, seconds=seconds)
                log.warning("%d of %d to %d workers", workers, numbers[0], numbers[-1])
            # Before any worker is there, and after what was waited for has come.
            hold.look(before or 0)
            vain = vain + 1 if grows and growth is not None and workers <= growth.now else 0
            look = partial(hold.look, 1)  # For those who begin where a commit was made for them.
            growth = Growth(numbers, workers, placement, stop.ask_workers, look=look, vain=vain)
            held = dataclasses.replace(with_workers(job, workers), fence=hold.lock.advance())
            with _way(job, hold) as way, growth.watching(), spares.beside(workers):
                begins_elsewhere = job.initial is not None and job.initial.kind == "state"
                expected = None if before is None and begins_elsewhere else before or 0
                outcome = _attempt(
                    held, streams, placement, patience, way, expected, spares.variables
                )
            if not growth.asked or stop.asked.is_set() or outcome.state != "preempted":
                return outcome
            # More workers take over from the commit that was made for them.
            fruitless = 0
        # A RayError says that Train's own controller is gone, with its node or for want of memory.
        except (TrainingFailedError, RayError, HungError, DriverLostError) as failure:
            cause = failure if isinstance(failure, HungError) else _root_cause(failure)
            # What the user or the data got wrong stays wrong however often it is tried.
            if isinstance(cause, OrchestratorError):
                raise cause from failure
            stop.check()
            if _is_preemption(failure):
                log.warning("a node was taken back; starting again from the newest commit")
                continue
            advanced = hold.last_commit() != before
            fruitless = 0 if advanced else fruitless + 1
            # What took too long may have been slow, and would be again.
            patience = 2.0**fruitless if isinstance(failure, HungError) else 1.0
            if fruitless >= experiment.train.max_failures:
                # A network that is down is no fault of the program, and may come back.
                kind = PreemptedError if isinstance(cause, UnreachedError) else OrchestratorError
                raise kind(
                    f"training failed {fruitless} times without a new commit; the last cause was "
                    f"{type(cause).__name__}: {cause}"
                ) from failure
            log.warning(
                "training stopped (%s: %s); starting again from the newest commit",
                type(cause).__name__,
                str(cause).splitlines()[0] if str(cause) else "",
            )


@contextmanager
def _way(job: TrainingJob, hold: Hold) -> Iterator[Way]:
    """How the workers of one attempt reach the run folder; none does any more afterwards."""
    fence = hold.folder.fence()
    if hold.marker is None:
        yield Way(job.run_dir, "")
        return
    control = start_control(job.path, fence)
    try:
        if hold.marker not in {
            entry.name for entry in RelayedStorage(control, job.run_dir).list("")
        }:
            # As with a Ray client, whose cluster is somewhere else.
            raise StorageError(
                f"{job.run_dir}: Ray says that the driver runs on node {this_node()}, and there is "
                "no such folder. Next: run the driver on a node of the cluster, by "
                "`orchestrator submit`"
            )
        yield Way(job.run_dir, hold.marker, control)
    finally:
        ray.kill(control)


def _timeout(hang_timeout: float | None) -> dict[str, int]:
    """Of collectives, for Ray, whose own is half an hour."""
    timeout = collective_timeout(hang_timeout)
    return {} if timeout is None else {"timeout_s": int(timeout.total_seconds())}


def _attempt(
    job: TrainingJob,
    streams: RayStreams,
    placement: Placement,
    patience: float,
    way: Way,
    expected: int | None,
    variables: Mapping[str, str],
) -> Outcome:
    """One group of workers, from their start to their end.

    Args:
        expected: step that they will probably begin with.
        variables: of the environment of all its processes.
    """
    name = f"attempt-{uuid.uuid4().hex[:8]}"
    storage = job.path / "ray"
    beats = job.path / HEARTBEATS / name
    timeout = job.experiment.cluster.hang_timeout
    # By reference, since the controller would import torch to read it.
    config = ray.put(
        {
            "job": job,
            "streams": streams,
            "expected": expected,
            "placement": placement,
            "beats": str(beats),
            "way": way,
        }
    )
    trainer = WatchedTrainer(
        _worker,
        train_loop_config={"config": config},
        beats=beats,
        timeout=timeout,
        way=way,
        variables=variables,
        backend_config=ProcessGroupConfig(
            backend=placement.accelerator.backend,
            reach_s=timeout or _REACH_SECONDS,
            **_timeout(timeout),
        ),
        scaling_config=ScalingConfig(
            num_workers=job.experiment.cluster.workers,
            use_gpu=placement.accelerator.kind == "gpu",
            resources_per_worker=placement.resources_per_worker,
            placement_strategy=placement.strategy,
            accelerator_type=placement.accelerator_type,
            label_selector=dict(placement.labels) or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            worker_runtime_env={"env_vars": {ROLE: WORKER}},
            failure_config=FailureConfig(**_NO_RESTARTS, controller_failure_limit=1),
        ),
    )
    try:
        if timeout is None:
            return Outcome(**trainer.fit().return_value)
        with HangWatch(beats, timeout, _kill_on_its_node, patience=patience) as watch:
            try:
                return Outcome(**trainer.fit().return_value)
            except (TrainingFailedError, RayError) as failure:
                if watch.hung:
                    # All that Ray knows is that a process is gone.
                    raise HungError("; ".join(watch.hung)) from failure
                raise
    finally:
        # Nobody reads again what Ray and the workers leave there, in this attempt or in one whose
        # driver was killed before it could tidy up.
        for folder in (storage, beats.parent):
            shutil.rmtree(folder, ignore_errors=True)
        _free_what_is_left()


def _free_what_is_left() -> None:
    """Free what a killed controller had reserved; the attempt is over whether that works or not."""
    if not ray.is_initialized():
        return
    try:
        freed = free_orphans()
    except Exception as error:
        log.warning("what the attempt had reserved could not be freed: %s", error)
    else:
        if freed:
            log.warning("freed what the dead controller had reserved")


def _kill_on_its_node(beat: Beat, spare_starved: bool) -> bool:
    """:func:`end_if_still` for a process of another node, by a task that runs there."""
    strategy = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=strategy)(end_if_still)
    ended: bool = ray.get(task.remote(beat.process, spare_starved), timeout=_KILL_SECONDS)
    return ended


def _is_preemption(failure: BaseException) -> bool:
    """Whether Ray says that a node was about to be taken back when this happened."""
    if isinstance(failure, getattr(ray.train, "PreemptionError", ())):
        return True
    errors = getattr(failure, "worker_failures", {}).values()
    deaths = (getattr(error, "health_check_failure", error) for error in errors)
    return any(isinstance(death, RayActorError) and death.preempted for death in deaths)


def _root_cause(failure: BaseException) -> BaseException:
    """The exception a worker raised, dug out of what Ray wraps around it."""
    inner: Any = failure
    while True:
        workers = getattr(inner, "worker_failures", None)
        following = next(iter(workers.values())) if workers else None
        for name in ("controller_failure", "cause", "__cause__"):
            following = following or getattr(inner, name, None)
        if not isinstance(following, BaseException) or following is inner:
            return inner if isinstance(inner, BaseException) else failure
        inner = following
