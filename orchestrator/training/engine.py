"""The step loop: plain torch, one process per rank, no Ray.

What it promises: the state after step ``s`` is a function of the experiment, the data and ``s``.
Batches, learning rates and random numbers are asked for by step number; everything else that a
step reads is in the last commit. Killing the loop anywhere and starting it again therefore ends
in the same weights.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from detectors.base import Detector
from orchestrator.checkpoints.codec import TrainState, weights_digest
from orchestrator.checkpoints.initial_weights import load_initial
from orchestrator.checkpoints.other_run import load_state
from orchestrator.data.batch import Batch
from orchestrator.errors import OrchestratorError
from orchestrator.storage.run_files import EVENTS
from orchestrator.tracking.events import LOG_LOST, lost_since, read_events
from orchestrator.tracking.goodput import (
    ACCOUNT,
    ATTEMPT,
    account_text,
    attempt_text,
    goodput,
)
from orchestrator.training.early_stopping import EarlyStopping
from orchestrator.training.feeding import Inputs, fed
from orchestrator.training.job import Outcome
from orchestrator.training.nonfinite_guard import NonFiniteGuard
from orchestrator.training.out_of_memory import explained
from orchestrator.training.pulse import pulse
from orchestrator.training.rank import Rank
from orchestrator.training.schedules import LearningRate
from orchestrator.training.state import capture, restore, shared
from orchestrator.training.stepper import Stepper, StepReport, StepUnderWay
from orchestrator.training.trial_decision import await_verdict
from orchestrator.training.validation import Evaluator, Validation
from orchestrator.training.verify_sampled import check_sampled


@dataclass
class _Throughput:
    """Images per second of the step loop, evaluation left out, first epoch left out."""

    skip: int
    images: int = 0
    seconds: float = 0.0

    def add(self, images: int, seconds: float) -> None:
        if self.skip > 0:
            self.skip -= 1
            return
        self.images += images
        self.seconds += seconds

    @property
    def value(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


@dataclass
class _Begun:
    """A step that was begun, and what it takes to begin it anew."""

    batch: Batch
    learning_rate: float
    stop: bool
    under_way: StepUnderWay


class Engine:
    """Trains one detector on one rank, in step with the other ranks.

    Args:
        rank: what it trains, and works with.
        model: on its device.
        evaluator: scores commits beside the steps, see :class:`Validation`.
    """

    def __init__(self, rank: Rank, model: Detector, *, evaluator: Evaluator | None = None) -> None:
        self.rank = rank
        self.job = job = rank.job
        train = job.experiment.train
        self.model = model
        self.collective = rank.collective
        self.store = rank.store
        self.events = rank.events
        self.stepper = Stepper(
            model,
            train,
            seed=job.experiment.seed,
            accelerator=rank.accelerator,
            precision=rank.precision,
            collective=rank.collective,
            shards=job.shards,
        )
        self.rate = LearningRate(
            schedule=train.schedule,
            base=train.base_rate,
            steps_per_epoch=job.schedule.steps_per_epoch,
            total_steps=job.schedule.total_steps,
            extensions=job.extensions,
        )
        self.early = (
            None
            if train.early_stopping is None
            else EarlyStopping(train.early_stopping, steps_per_epoch=job.schedule.steps_per_epoch)
        )
        self.validation = Validation(rank, self.stepper, early=self.early, evaluator=evaluator)
        self.step = 0
        self.guard = NonFiniteGuard(rank, self.stepper, state=self._state, note=self._note)
        self.ending: dict[str, Any] | None = None
        self.throughput = _Throughput(skip=min(job.schedule.steps_per_epoch, 20))
        self._replaced = 0
        self._committed = -1
        #: Steps whose numbers have not been read yet, oldest first.
        self._begun: deque[_Begun] = deque()
        self._clock = 0.0
        #: What was said last of the graph that steps were compiled to.
        self._graph = ""

    def run(self) -> Outcome:
        """Train from the newest commit to the end, or until asked to stop."""
        pulse.begin()
        self._note(ATTEMPT, attempt_text(self.job.driver_began or time.time()))
        with pulse.waiting("start"):
            start = self._resume()
            if self.stepper.shards.text:
                self._note("virtual_shards", self.stepper.shards.text, step=start)
        pulse.mark("waiting for a batch", start)
        abandoned = self.validation.abandoned
        if abandoned:
            return self._outcome("preempted", start)
        if self._ends_early():
            return self._outcome("done", start)
        # A run that was killed while it waited is judged now.
        if not self._goes_on():
            return self._outcome("stopped", start)
        stopped, ended, given_up = False, False, False
        self._clock = time.perf_counter()
        for batch, inputs in fed(
            self.rank.stream.train_batches(self.step, self.job.total_steps), self.collective.device
        ):
            pulse.mark("step", batch.step)
            expected = self.step + len(self._begun)
            if batch.step != expected:
                raise OrchestratorError(
                    f"data stream: got the batch of step {batch.step}, expected {expected}"
                )
            self._count_replaced(batch)
            self._begin_step(batch, inputs)
            self._note_graph(batch.step)
            if batch.step == start:
                check_sampled(self.job, self.stepper.optimizer, self.rate, batch.step)
            # The numbers of a step are read while the device does the next one, so a wish to stop
            # is heard of then. Before anything is done with the state, all are read.
            stopped = self._read(keep=self.stepper.ahead)
            done = batch.step + 1
            if stopped or self.job.commits_after(done) or self.job.evaluates_after(done):
                stopped = self._read(keep=0) or stopped
                if stopped or self.job.commits_after(done):
                    self._commit()
                if not stopped and self.job.evaluates_after(done):
                    scored = self.validation.after(
                        self.step, committed=self._committed == self.step
                    )
                    stopped = not scored
                    if stopped and self._committed != self.step:
                        self._commit()
                    ended = not stopped and self._ends_early()
                    given_up = not stopped and not ended and not self._goes_on()
                    self._clock = time.perf_counter()
                if stopped or ended or given_up:
                    break
            pulse.mark("waiting for a batch", done)
        with pulse.waiting("commit"):
            self.store.wait()
        if not stopped:
            # Whoever asked for a stop does not wait for it; the next start has it done again.
            self.validation.finish()
        stopped = stopped or self.validation.abandoned
        state = "preempted" if stopped else "stopped" if given_up else "done"
        return self._outcome(state, start)

    def _begin_step(self, batch: Batch, inputs: Inputs) -> None:
        """Have a step done; its numbers are read later."""
        rate, stop = self.rate(batch.step), self.rank.stop_requested()
        self._begun.append(_Begun(batch, rate, stop, self._launch(batch, rate, stop, inputs)))

    def _launch(
        self, batch: Batch, rate: float, stop: bool, inputs: Inputs | None = None
    ) -> StepUnderWay:
        with explained(self.job, batch.step, accelerator=self.rank.accelerator):
            return self.stepper.begin(batch, learning_rate=rate, stop=stop, inputs=inputs)

    def _note_graph(self, step: int) -> None:
        """Say what became of the graph that a step was to be, and say it again if that changes."""
        graph = self.stepper.graph
        if graph is not None and graph.text() != self._graph:
            self._graph = graph.text()
            self._note("compile", self._graph, step=step)

    def _read(self, *, keep: int) -> bool:
        """Read the numbers of the steps that were begun, but for the newest ``keep``.

        Returns:
            Whether somebody was asked to stop before one of them; the same on all ranks.
        """
        stopped = False
        while len(self._begun) > keep:
            one = self._begun.popleft()
            report = self.stepper.read(one.under_way)
            self.step = one.batch.step + 1
            pulse.mark("after the step", self.step)
            self.guard.check(report, one.batch, learning_rate=one.learning_rate)
            if not report.applied:
                for later in self._begun:
                    later.under_way = self._launch(later.batch, later.learning_rate, later.stop)
            now = time.perf_counter()
            seconds, self._clock = now - self._clock, now
            self.throughput.add(self.job.schedule.batch_size, seconds)
            stopped = stopped or report.stop
            last = not self._begun and keep == 0
            if last and (stopped or self.job.commits_after(self.step)):
                # The new commit waits for the one before anyway. Doing so before this step is
                # logged, a kill never undoes more than one step that anybody knows of.
                with pulse.waiting("commit"):
                    self.store.wait()
            self._log_step(report, seconds)
        return stopped

    def _ends_early(self) -> bool:
        """Whether early stopping ends the run after this step; the same on all ranks."""
        if self.early is None or not self.job.counts_after(self.step):
            return False
        if self.step == self.job.total_steps:
            return False
        self.ending = self.collective.from_main(self.early.ending)
        if self.ending is not None:
            self._note("early_stopping", self.ending["reason"])
        return self.ending is not None

    def _goes_on(self) -> bool:
        """Wait for the verdict on this step, if it is one that is judged; the same on all ranks."""
        if not self.job.judged_after(self.step):
            return True
        answer = None
        if self.collective.is_main:
            with pulse.waiting("verdict"):
                self.store.wait()
                answer = await_verdict(self.job.path, self.step)
        return bool(self.collective.from_main(answer))

    def _resume(self) -> int:
        """Load the newest verified commit on every rank; redo evaluations that were cut off."""
        step: int | None = None
        if self.collective.is_main:
            found = self.store.latest()
            for rejected in found.rejected:
                self._note("checkpoint_rejected", rejected.describe())
            if found.commit is not None:
                step = found.commit.step
                mark = found.commit.manifest.log
                lost = None if mark is None else lost_since(self.job.path / EVENTS, mark)
                if lost is not None:
                    self._note(
                        LOG_LOST,
                        f"{lost} when step {step} was committed; what was measured until then is "
                        "not all here. A copy of the log, if there is one, has it",
                    )
                scores = found.commit.metrics or {}
                known = {key.removeprefix("val/"): value for key, value in scores.items()}
                self.validation.metrics = known
        step = self.collective.from_main(step)
        if step is None:
            self._begin()
            return self.step
        self.job.require_ahead(step)
        newest = step
        # Of many ranks one reads: a commit is large, and a bucket is slow.
        state = shared(lambda: self.store.load(newest), self.collective)
        scalars = restore(state, self.stepper)
        self.step = self._committed = step
        self.guard.load(scalars)
        self._replaced = int(scalars["replaced"])
        if self.early is not None:
            self.early.load(scalars.get("early_stopping"))
            if self.validation.metrics and self.job.counts_after(step):
                self.early.count(self.validation.metrics, step=step)
        self._note("resume", f"from commit {step}")
        self.validation.catch_up(step)
        return step

    def _begin(self) -> None:
        """Take over the initial weights, or the state of another run, if there are any."""
        initial = self.job.initial
        if initial is None:
            self._note("start", "from random weights")
            return
        if initial.kind == "state":
            state = shared(lambda: load_state(initial, self.job.label_map), self.collective)
            self.job.require_ahead(state.step, where=initial.path)
            restore(state, self.stepper)
            self.step = state.step
            self._note("continued", f"from {initial.path}, after {state.step} steps")
            return
        # Every rank reads them itself.
        loaded = load_initial(initial, self.job.experiment, self.job.label_map)
        loaded.put_into(self.model)
        if self.stepper.average is not None:
            self.stepper.average.load(self.model.state_dict())
        self._note("init_from", loaded.text())

    def _count_replaced(self, batch: Batch) -> None:
        """Stop when too many images had to be replaced since the start of the epoch."""
        for position, sample, reason in batch.replaced:
            self._note(
                "replaced",
                f"step {batch.step} slot {position} sample {sample}: {reason}",
                step=batch.step,
            )
        if batch.step % self.job.schedule.steps_per_epoch == 0:
            self._replaced = 0
        self._replaced += len(batch.replaced)
        limit = self.job.experiment.data.max_bad_fraction * len(self.job.schedule.sample_ids)
        if self._replaced > limit:
            raise OrchestratorError(
                f"data.max_bad_fraction: {self._replaced} images of this epoch could not be read, "
                f"more than {limit:.0f} allowed. Next: see `replaced` in "
                f"{self.job.path / 'events.jsonl'} and repair or remove those files"
            )

    def _log_step(self, report: StepReport, seconds: float) -> None:
        every = self.job.experiment.train.log_every_steps
        if self.events is None or (self.step % every and self.step != self.job.total_steps):
            return
        images_per_s = self.job.schedule.batch_size / seconds
        values = {f"train/{name}": value for name, value in report.losses.items()}
        values["train/lr"] = report.learning_rate
        values["train/gradient_norm"] = report.gradient_norm
        values["train/images_per_s"] = images_per_s
        values["train/epoch"] = self.step / self.job.schedule.steps_per_epoch
        if self.stepper.scaler.is_enabled():
            values["train/overflows"] = float(self.guard.overflows)
        self.events.metrics(values, step=self.step)
        self.store.refresh()

    def _commit(self) -> None:
        """Write the state after ``self.step`` steps; blocks only for the copy off the device."""
        if not self.collective.is_main:
            return
        self._account()
        log = None if self.events is None else self.events.mark()
        if not self.guard.allows_commit(self.step):
            return
        self.store.save_async(
            self._state(),
            config_digest=self.job.config_digest,
            data_digest=self.job.data_digest,
            label_map=self.job.label_map.to_json(),
            log=log,
        )
        self._committed = self.step

    def _state(self) -> TrainState:
        return capture(
            self.stepper,
            step=self.step,
            scalars={
                **self.guard.scalars(),
                "replaced": self._replaced,
                "world": self.collective.world,
                "virtual_shards": self.stepper.shards.to_json(self.job.threads),
                "batch_size": self.job.schedule.batch_size,
                "early_stopping": None if self.early is None else self.early.to_json(),
            },
        )

    def _note(self, kind: str, text: str, *, step: int | None = None) -> None:
        self.rank.note(kind, text, step=self.step if step is None else step)

    def _account(self) -> None:
        """Leave in the log how the time of this start was spent."""
        self._note(ACCOUNT, account_text(pulse.spent))

    def _outcome(self, state: str, start: int) -> Outcome:
        self._account()
        if self.events is not None:
            account = goodput(read_events(self.job.path / EVENTS))
            if account is not None:
                self.events.metrics({"goodput": account.share}, step=self.step)
        with pulse.waiting("end"):
            best = self.store.best() if self.collective.is_main else None
        return Outcome(
            state=state,
            steps=self.step,
            samples=self.step * self.job.schedule.batch_size,
            images_per_s=self.throughput.value,
            metrics=self.validation.metrics,
            best_metrics=None if best is None else dict(best.metrics or {}),
            best_checkpoint=None if best is None else best.path,
            weights_sha256=weights_digest(self._state()) if self.collective.is_main else "",
            resumed_from=start,
            early_stopping=self.ending,
        )
