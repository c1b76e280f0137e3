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
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray.train
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.accelerators import Accelerator
from orchestrator.cluster.controller import WatchedTrainer, free_orphans
from orchestrator.cluster.evaluator import RayEvaluator
from orchestrator.cluster.heartbeat import Beat, HangWatch, Heartbeat, end_if_still
from orchestrator.cluster.placement import Placement
from orchestrator.data.stream.ray_stream import RayStream, ScheduledDataConfig
from orchestrator.errors import OrchestratorError
from orchestrator.storage.bucket_lock import BucketLock
from orchestrator.storage.folder_lock import RunLock
from orchestrator.storage.run_files import HEARTBEATS
from orchestrator.training.interrupt import stop_on_sigterm
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.session import run_rank

log = logging.getLogger(__name__)

#: A task on the node of a rank that stands still has to start and end within this.
_KILL_SECONDS = 30.0

#: Timeouts after which a collective gives up by itself. While rank 0 works alone, and may take long
#: over it, the others wait for it in one.
_COLLECTIVE_TIMEOUTS = 20

#: Ray restarts nothing by itself; releases that know preemptions do so after one, for ever, unless
#: they are told.
_NO_RESTARTS = {
    name: 0
    for name in ("max_failures", "max_preemption_failures")
    if name in FailureConfig.__dataclass_fields__
}


class HungError(Exception):
    """A worker stood still and was killed."""


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in every Ray Train worker."""
    context = ray.train.get_context()
    job: TrainingJob = config["job"]
    timeout = job.experiment.cluster.hang_timeout
    node = ray.get_runtime_context().get_node_id()
    alive: AbstractContextManager[Any] = nullcontext()
    if timeout is not None:
        alive = Heartbeat(Path(config["beats"]), context.get_world_rank(), timeout, node=node)
    stream: RayStream = ray.train.get_dataset_shard("train")
    accelerator = Accelerator(config["kind"])
    evaluator = None
    if job.evaluates_beside and context.get_world_rank() == 0:
        evaluator = RayEvaluator(
            job, stream.plan_ref, accelerator, config["resources"], Path(config["beats"])
        )
    with alive:
        outcome = run_rank(
            job,
            stream,
            accelerator=accelerator,
            local_rank=context.get_local_rank(),
            evaluator=evaluator,
        )
    return outcome.to_json()


# Reached through the public class, because Ray keeps the backend itself private.
class _StoppableBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Torch's process group, and workers that finish their step when they get SIGTERM.

    Ray's own handler would end the process in the middle of it. Handlers can be set in a process's
    main thread only; Ray runs there what a backend executes, and training in another one.
    """

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(stop_on_sigterm)


class _StoppableTorchConfig(TorchConfig):  # type: ignore[misc]
    @property
    def backend_cls(self) -> type[_StoppableBackend]:
        return _StoppableBackend


def fit(
    job: TrainingJob,
    data: ScheduledDataConfig,
    placement: Placement,
    *,
    last_commit: Callable[[], int | None],
    lock: RunLock | BucketLock,
) -> Outcome:
    """Train until done, starting again after a failure as long as commits advance.

    A node that its cloud takes back is no failure, however often it happens.

    Args:
        job: what to train.
        data: hands every rank its ordered batches.
        placement: resources of the workers.
        last_commit: newest verified commit's step; asked after a failure.
        lock: on the run; every attempt fences off the workers of the one before.

    Raises:
        OrchestratorError: the cause of the last failure, after ``train.max_failures`` attempts
            without a new commit between them.
    """
    experiment = job.experiment
    fruitless = 0
    patience = 1.0
    while True:
        before = last_commit()
        try:
            held = dataclasses.replace(job, fence=lock.advance())
            return _attempt(held, data, placement, patience)
        # A RayError says that Train's own controller is gone, with its node or for want of memory.
        except (TrainingFailedError, RayError, HungError) as failure:
            cause = failure if isinstance(failure, HungError) else _root_cause(failure)
            # What the user or the data got wrong stays wrong however often it is tried.
            if isinstance(cause, OrchestratorError):
                raise cause from failure
            if _is_preemption(failure):
                log.warning("a node was taken back; starting again from the newest commit")
                continue
            advanced = last_commit() != before
            fruitless = 0 if advanced else fruitless + 1
            # What took too long may have been slow, and would be again.
            patience = 2.0**fruitless if isinstance(failure, HungError) else 1.0
            if fruitless >= experiment.train.max_failures:
                raise OrchestratorError(
                    f"training failed {fruitless} times without a new commit; the last cause was "
                    f"{type(cause).__name__}: {cause}"
                ) from failure
            log.warning(
                "training stopped (%s: %s); starting again from the newest commit",
                type(cause).__name__,
                str(cause).splitlines()[0] if str(cause) else "",
            )


def _collective_timeout(hang_timeout: float | None) -> dict[str, int]:
    """The backstop where no progress can be seen from outside; Ray's own is half an hour."""
    return {} if hang_timeout is None else {"timeout_s": int(_COLLECTIVE_TIMEOUTS * hang_timeout)}


def _attempt(
    job: TrainingJob, data: ScheduledDataConfig, placement: Placement, patience: float
) -> Outcome:
    name = f"attempt-{uuid.uuid4().hex[:8]}"
    storage = job.path / "ray"
    beats = job.path / HEARTBEATS / name
    timeout = job.experiment.cluster.hang_timeout
    trainer = WatchedTrainer(
        _worker,
        train_loop_config={
            "job": job,
            "kind": placement.accelerator.kind,
            "beats": str(beats),
            "resources": placement.resources_per_worker,
        },
        beats=beats,
        timeout=timeout,
        torch_config=_StoppableTorchConfig(
            backend=placement.accelerator.backend, **_collective_timeout(timeout)
        ),
        scaling_config=ScalingConfig(
            num_workers=job.experiment.cluster.workers,
            use_gpu=placement.accelerator.kind == "gpu",
            resources_per_worker=placement.resources_per_worker,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(**_NO_RESTARTS, controller_failure_limit=1),
        ),
        datasets=data.datasets(),
        dataset_config=data,
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
        following = following or getattr(inner, "cause", None) or inner.__cause__
        if not isinstance(following, BaseException) or following is inner:
            return inner if isinstance(inner, BaseException) else failure
        inner = following
