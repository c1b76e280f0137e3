"""Runs in this process, as tests of several files train and stop them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.accelerators import Accelerator
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.runs.plan import Plan
from orchestrator.storage.run_files import STOP
from orchestrator.training.job import Outcome
from orchestrator.training.session import run_rank


def train(plan: Plan, stream: LocalStream | None = None) -> Outcome:
    return run_rank(plan.job, stream or LocalStream(plan.batches), accelerator=Accelerator("cpu"))


class StoppingStream(LocalStream):
    """Asks for a stop while it hands out one particular step; None for never.

    Args:
        plan: of the run.
        at: the step.
        evaluating: ask with the first images of the evaluation of this number instead, from 0.
    """

    def __init__(self, plan: Plan, at: int | None, *, evaluating: int | None = None) -> None:
        super().__init__(plan.batches)
        self._file, self._at = plan.job.path / STOP, at
        self._evaluations, self._evaluating = 0, evaluating

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step == self._at:
                self._file.touch()
            yield batch

    def eval_batches(self) -> Iterator[Batch]:
        number, self._evaluations = self._evaluations, self._evaluations + 1
        for batch in super().eval_batches():
            if number == self._evaluating:
                self._file.touch()
            yield batch
