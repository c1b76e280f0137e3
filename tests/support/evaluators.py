"""Evaluators without Ray, and a detector whose scores tell every change of its weights."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from detectors.structures import Candidates
from orchestrator.data.stream.assemble import BatchPlan
from orchestrator.training import session
from orchestrator.training.commit_evaluator import CommitEvaluator
from orchestrator.training.job import TrainingJob
from orchestrator.training.validation import EvaluatorLostError, Scored
from tests.support.chaos_run import CPU, SmallDetector
from tests.support.faulty_storage import QuickStorage

_STARTS = torch.arange(0.0, 16.0, 2.0)


class FickleDetector(SmallDetector):
    """Boxes on a grid; which of them count, and as what, changes with the last bits of a weight."""

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        corners = torch.cartesian_prod(_STARTS, _STARTS)
        boxes = torch.cat([torch.cat([corners, corners + size], 1) for size in (4.0, 6.0, 8.0)])
        phases = torch.arange(1.0, len(boxes) * 10 + 1).reshape(len(boxes), 10)
        scores = (raw["boxes"].sum(1)[:, None, None] * 50 * phases).sin().square()
        return Candidates(boxes.expand(len(scores), -1, -1), scores)


def fickle_detector(*_: Any, **__: Any) -> FickleDetector:
    return FickleDetector()


class ThreadEvaluator:
    """Scores commits in a thread of this process.

    Args:
        job, batches: the run.
        lost_at: step whose scores never come; None for none.
    """

    def __init__(self, job: TrainingJob, batches: BatchPlan, lost_at: int | None = None) -> None:
        # A storage of its own: that of the run may be about to fail.
        with mock.patch.object(session, "LocalStorage", QuickStorage):
            self._inner = CommitEvaluator(job, batches, CPU)
        self._lost_at = lost_at
        self._pool = ThreadPoolExecutor(1)
        self._answer: Future[Scored] | None = None
        self.steps: list[int] = []
        self.closed = False

    def submit(self, step: int) -> None:
        assert self._answer is None, "two at a time"
        self.steps.append(step)
        self._answer = self._pool.submit(self._inner.score, step)

    def result(self) -> Scored:
        assert self._answer is not None
        answer, self._answer = self._answer, None
        if self.steps[-1] == self._lost_at:
            raise EvaluatorLostError("taken away by the test")
        return answer.result()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.closed = True
