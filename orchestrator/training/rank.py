"""What one process of a run works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.accelerators import Accelerator, Precision
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.data.batch import BatchStream
from orchestrator.tracking.events import EventLog
from orchestrator.training.collective import Collective
from orchestrator.training.job import TrainingJob


@dataclass(frozen=True)
class Rank:
    """One rank of a run: what it trains, on what, with whom, and where it writes.

    Attributes:
        job: what to train.
        accelerator: kind of device.
        precision: of forward and backward.
        collective: the ranks.
        stream: this rank's batches and validation images.
        store: where commits and their scores live; read by every rank, written by rank 0.
        events: the run's log; None on every rank but 0.
        stop_requested: asked once a step, and once a batch of an evaluation; true makes all ranks
            commit and end. Whoever asks leaves less time than an evaluation may take, and the next
            start has it done again.
    """

    job: TrainingJob
    accelerator: Accelerator
    precision: Precision
    collective: Collective
    stream: BatchStream
    store: CommitStore
    events: EventLog | None
    stop_requested: Callable[[], bool]

    def note(self, kind: str, text: str, *, step: int) -> None:
        """Write to the run's log, on rank 0."""
        if self.events is not None:
            self.events.note(kind, text, step=step)
