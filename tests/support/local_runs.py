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
    """Asks for a stop while it hands out one particular step; None for never."""

    def __init__(self, plan: Plan, at: int | None) -> None:
        super().__init__(plan.batches)
        self._file, self._at = plan.job.path / STOP, at

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for batch in super().train_batches(start_step, stop_step):
            if batch.step == self._at:
                self._file.touch()
            yield batch
