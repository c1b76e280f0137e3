"""Running a training job on Ray Train V2 and starting it again while it makes progress.

Ray restarts nothing here: each attempt is a trainer of its own with a fresh name, and the truth
about where to go on is the newest verified commit. Ray's snapshot of its own checkpoints, which
lags and can be torn, is therefore never read.
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.accelerators import Accelerator
from orchestrator.data.ray_stream import ScheduledDataConfig
from orchestrator.errors import OrchestratorError
from orchestrator.training.cluster import Placement
from orchestrator.training.job import Outcome, TrainingJob
from orchestrator.training.run_lock import RunLock
from orchestrator.training.session import run_rank

log = logging.getLogger(__name__)


def _worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in every Ray Train worker."""
    context = ray.train.get_context()
    outcome = run_rank(
        config["job"],
        ray.train.get_dataset_shard("train"),
        accelerator=Accelerator(config["kind"]),
        local_rank=context.get_local_rank(),
    )
    return outcome.to_json()


def fit(
    job: TrainingJob,
    data: ScheduledDataConfig,
    placement: Placement,
    *,
    last_commit: Callable[[], int | None],
    lock: RunLock,
) -> Outcome:
    """Train until done, starting again after a failure as long as commits advance.

    Args:
        job: what to train.
        data: hands every rank its ordered batches.
        placement: resources of the workers.
        last_commit: newest verified commit's step; asked after a failure.
        lock: on the run folder; every attempt fences off the workers of the one before.

    Raises:
        OrchestratorError: the cause of the last failure, after ``train.max_failures`` attempts
            without a new commit between them.
    """
    experiment = job.experiment
    fruitless = 0
    while True:
        before = last_commit()
        try:
            return _attempt(dataclasses.replace(job, fence=lock.advance()), data, placement)
        except TrainingFailedError as failure:
            cause = _root_cause(failure)
            # What the user or the data got wrong stays wrong however often it is tried.
            if isinstance(cause, OrchestratorError):
                raise cause from failure
            advanced = last_commit() != before
            fruitless = 0 if advanced else fruitless + 1
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


def _attempt(job: TrainingJob, data: ScheduledDataConfig, placement: Placement) -> Outcome:
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "kind": placement.accelerator.kind},
        torch_config=TorchConfig(backend=placement.accelerator.backend),
        scaling_config=ScalingConfig(
            num_workers=job.experiment.cluster.workers,
            use_gpu=placement.accelerator.kind == "gpu",
            resources_per_worker=placement.resources_per_worker,
        ),
        run_config=RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(job.path / "ray"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
        ),
        datasets=data.datasets(),
        dataset_config=data,
    )
    result = trainer.fit()
    return Outcome(**result.return_value)


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
