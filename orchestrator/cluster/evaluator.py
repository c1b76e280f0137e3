"""An evaluator as a Ray actor, with the resources of one more worker.

It belongs to the process of rank 0 and ends with it, however that ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.accelerators import Accelerator
from orchestrator.cluster.actor_pool import actor_options
from orchestrator.cluster.heartbeat import EVALUATOR, Heartbeat
from orchestrator.cluster.relay import Way
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.training.commit_evaluator import CommitEvaluator
from orchestrator.training.job import TrainingJob
from orchestrator.training.validation import EvaluatorLostError, Scored

#: Once its answer is wanted, an actor that has not started yet gets so long to do so. It was asked
#: for before the steps of an epoch or more.
_START_SECONDS = 120.0


class _WatchedEvaluator(CommitEvaluator):
    """An evaluator that gives signs of life, so that one that is stopped is not waited for."""

    def __init__(
        self, beats: Path, timeout: float | None, way: Way, job: TrainingJob, *arguments: Any
    ) -> None:
        super().__init__(way.commits_of(job), *arguments)
        if timeout is not None:
            node = ray.get_runtime_context().get_node_id()
            send = way.signs(str(beats))
            self._alive = Heartbeat(beats, EVALUATOR, timeout, node=node, send=send)
            self._alive.__enter__()


class RayEvaluator:
    """Scores commits on the cluster; the actor is started for the first of them.

    Args:
        job: the run.
        batches: its plan, in the object store.
        accelerator: the kind of device it trains on.
        resources: that the actor reserves, those of a worker.
        beats: folder of the signs of life of this attempt.
        way: to the run folder.
    """

    def __init__(
        self,
        job: TrainingJob,
        batches: ray.ObjectRef[BatchPlan],
        accelerator: Accelerator,
        resources: Mapping[str, float],
        beats: Path,
        way: Way,
    ) -> None:
        timeout = job.experiment.cluster.hang_timeout
        self._arguments = (beats, timeout, way, job, batches, accelerator)
        self._resources = dict(resources)
        self._actor: Any = None
        self._started: Any = None
        self._answer: Any = None
        self._trouble: RayError | None = None

    def submit(self, step: int) -> None:
        """Begin to score the commit of ``step``; does not wait."""
        try:
            if self._actor is None:
                self._actor = self._start()
                # Asked for before anything else, because an actor answers in turn.
                self._started = self._actor.__ray_ready__.remote()
            self._answer = self._actor.score.remote(step)
        except RayError as error:
            self._trouble = error

    def result(self) -> Scored:
        """What was found for the commit submitted last, waiting for it.

        Raises:
            EvaluatorLostError: the actor is gone, got no place, or failed.
        """
        answer, self._answer = self._answer, None
        try:
            if self._trouble is not None:
                raise self._trouble
            if not ray.wait([self._started], timeout=_START_SECONDS)[0]:
                self.close()
                raise EvaluatorLostError("the cluster has had no place for it")
            scored: Scored = ray.get(answer)
        except RayError as error:
            self.close()
            raise EvaluatorLostError(_reason(error)) from error
        return scored

    def close(self) -> None:
        """End the actor, whatever it is doing."""
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _start(self) -> Any:
        actor = ray.remote(
            **actor_options(self._resources),
            # Not among the places of the workers, which are all taken.
            scheduling_strategy="DEFAULT",
        )(_WatchedEvaluator)
        return actor.remote(*self._arguments)


def _reason(error: RayError) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {next(iter(str(cause).splitlines()), '')}"
