"""What becomes of steps whose numbers are not finite: counted, kept, and some time too many.

A step whose loss, gradient or weights are not finite changes nothing, so training goes on behind
it. A row of them means that nothing will come of it any more: the run goes back to the last commit
that no such step led to, and ends with what it takes to repeat the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.checkpoints.codec import TrainState
from orchestrator.data.batch import Batch
from orchestrator.errors import OrchestratorError
from orchestrator.storage.run_files import NONFINITE
from orchestrator.training import nonfinite_dump
from orchestrator.training.rank import Rank
from orchestrator.training.stepper import Stepper, StepReport

#: Overflows of the loss scaler in a row after which it cannot be the scale: 2**16 at first, and
#: halved each time, it is far below 1 by then; and a fixed one that overflows so often always will.
MOST_OVERFLOWS = 64


class NonFiniteError(OrchestratorError):
    """Losses or gradients stayed NaN or infinite for too many steps in a row."""


class NonFiniteGuard:
    """Looks at what came of each step, on every rank alike.

    Args:
        rank: what is trained, and with whom.
        stepper: makes the steps.
        state: the state as it is now.
        note: writes to the run's log: kind, then text.

    Attributes:
        bad_steps: steps skipped in a row, up to now.
        overflows: steps skipped in all because the loss scale was too large.
        overflows_in_a_row: up to now; one beyond :data:`MOST_OVERFLOWS` is a step like any other
            whose gradient is not finite.
    """

    def __init__(
        self,
        rank: Rank,
        stepper: Stepper,
        *,
        state: Callable[[], TrainState],
        note: Callable[[str, str], None],
    ) -> None:
        self.rank = rank
        self.job = rank.job
        self.stepper = stepper
        self.collective = rank.collective
        self.bad_steps = 0
        self.overflows = 0
        self.overflows_in_a_row = 0
        self._state = state
        self._note = note
        #: First step of a row of bad ones, whose state is that of all of them.
        self._first_bad: int | None = None

    def scalars(self) -> dict[str, int]:
        """What a commit keeps of it."""
        return {
            "bad_steps": self.bad_steps,
            "overflows": self.overflows,
            "overflows_in_a_row": self.overflows_in_a_row,
        }

    def load(self, scalars: Mapping[str, Any]) -> None:
        """Go on from what a commit has kept."""
        self.bad_steps = int(scalars["bad_steps"])
        self.overflows = int(scalars["overflows"])
        # Commits of before lack it.
        self.overflows_in_a_row = int(scalars.get("overflows_in_a_row", 0))

    def check(self, report: StepReport, batch: Batch, *, learning_rate: float) -> None:
        """Count a step that was skipped, and keep what it was made of.

        Raises:
            NonFiniteError: there were ``train.nonfinite_limit`` in a row.
        """
        if report.applied:
            self.bad_steps, self.overflows_in_a_row, self._first_bad = 0, 0, None
            return
        if report.overflow:
            self.overflows += 1
            self.overflows_in_a_row += 1
            if self.overflows_in_a_row <= MOST_OVERFLOWS:
                return
        self.bad_steps += 1
        if self._first_bad is None:
            self._first_bad = batch.step
        what = (
            f"losses {report.losses}, gradient norm {report.gradient_norm}"
            if report.sound
            else f"weights or average are not finite: {self._damage()}"
        )
        if report.overflow:
            what += f", overflow in fp16 for {self.overflows_in_a_row} steps in a row"
        images = self.collective.gather(batch.image_ids.tolist())
        self._note(
            "nonfinite", f"step {batch.step}: {what}, image ids {images}; the step was skipped"
        )
        kept = self._keep_evidence(report, batch, learning_rate)
        if self.bad_steps < self.job.experiment.train.nonfinite_limit:
            return
        good = self._roll_back()
        remedy = "lower train.optimizer.lr"
        remedy += ", or set train.precision to bf16 or fp32" if report.overflow else ""
        raise NonFiniteError(
            f"step {batch.step}: not finite {self.bad_steps} times in a row ({what}); the run is "
            f"back at {good}. Next: `orchestrator replay {self.job.run_dir}` repeats "
            f"{'that step' if kept else 'an earlier such step'} and names what broke; its images "
            f"are in {self.job.path / NONFINITE}. Then repair those images, or {remedy}"
        )

    def allows_commit(self, step: int) -> bool:
        """Whether the state after ``step`` steps may be committed.

        Raises:
            NonFiniteError: it is not finite, and no step was skipped for it: the last one broke it.
        """
        if not self.stepper.damaged():
            return True
        if self.bad_steps:
            return False
        raise NonFiniteError(
            f"step {step}: its update left tensors that are not finite ({self._damage()}), so it "
            "was not committed. Next: start the run again, which goes on from its last commit, "
            "with a lower train.optimizer.lr"
        )

    def _damage(self) -> str:
        names = self.stepper.damaged()
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return (", ".join(names[:4]) or "on another rank") + more

    def _keep_evidence(self, report: StepReport, batch: Batch, learning_rate: float) -> bool:
        """Write the step's batch, and the state it met, to the run folder; whether it is there."""
        main = self.collective.is_main
        if not self.collective.from_main(
            main and nonfinite_dump.has_room(self.job.path, batch.step)
        ):
            return False
        trouble = nonfinite_dump.keep_batch(self.job.path, batch, rank=self.collective.rank)
        troubles = self.collective.gather(trouble)
        if troubles is not None and not any(troubles):
            # The report makes the evidence complete, so it comes after every rank's share.
            trouble = nonfinite_dump.keep_report(
                self.job,
                report,
                step=batch.step,
                learning_rate=learning_rate,
                precision=self.rank.precision,
                world=self.collective.world,
                state=self._state() if self._first_bad == batch.step else None,
                state_of=self._first_bad,
                shards=self.stepper.shards,
            )
            troubles = [trouble]
        for text in filter(None, troubles or []):
            self._note("evidence", f"step {batch.step} could not be kept: {text}")
        return self.collective.from_main(not any(troubles or []))

    def _roll_back(self) -> str:
        """Leave the newest commit that no bad step led to as the newest; says which it is."""
        good: int | None = None
        if self.collective.is_main:
            good = self.rank.store.roll_back(lambda scalars: scalars["bad_steps"] == 0)
            self._note("rollback", f"to commit {good}" if good else "to the beginning")
        good = self.collective.from_main(good)
        return "its beginning: no step was committed" if good is None else f"commit {good}"
