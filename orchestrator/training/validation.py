"""Scores of a run's commits, found in the step loop or beside it: the same bits either way.

In the loop, all ranks stop and share the validation images. Beside it, an :class:`Evaluator` on
resources of its own reads the commit that was just written while the ranks train on; rank 0 takes
its scores where the next evaluation is due, so that they have one place in the log, and never more
than one evaluation is outstanding. The last one of a run has no step to be beside, so all ranks do
it.

Scores are logged first and attached to their commit after that. A kill between the two has the
commit scored once more, which changes nothing: the log takes each metric of a step once, and the
scores are the same. The next start scores every commit that waits for it, and retention deletes
none of those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from orchestrator.checkpoints.codec import STATE_NAME, TENSOR_FILES, Tensors, decode_weights
from orchestrator.checkpoints.commit import CommitStore
from orchestrator.data.batch import Batch
from orchestrator.errors import StorageError
from orchestrator.evaluation.coco import CocoMetrics, evaluate, write_per_class
from orchestrator.evaluation.detections import Detections
from orchestrator.evaluation.marks import write_samples
from orchestrator.evaluation.results import Results, write_results
from orchestrator.storage.run_files import EVALUATION, SAMPLES
from orchestrator.training.early_stopping import EarlyStopping
from orchestrator.training.ema import holding
from orchestrator.training.predictor import in_whole_images, predict_all
from orchestrator.training.pulse import pulse
from orchestrator.training.rank import Rank
from orchestrator.training.stepper import Stepper


@dataclass(frozen=True)
class Scored:
    """What one evaluation found: detections in all validation images, and their scores."""

    found: Detections
    scores: CocoMetrics


#: Batches of an evaluation after which a wish to stop is known everywhere.
_WORDS = 2


def _said(number: Tensor, work: Any) -> bool:
    """What came of :meth:`Collective.ask_async`."""
    work.wait()
    return bool(number > 0)


class EvaluatorLostError(Exception):
    """An evaluator will not answer: its process is gone, got no place, or failed."""


class Evaluator(Protocol):
    """Scores one commit at a time, somewhere else."""

    def submit(self, step: int) -> None:
        """Begin to score the commit of ``step``, which is there; does not wait."""
        ...

    def result(self) -> Scored:
        """What was found for the commit submitted last, waiting for it.

        Raises:
            EvaluatorLostError: nothing will come; the message says why.
        """
        ...

    def close(self) -> None:
        """Give everything back, whatever is under way."""
        ...


def weights_to_score(store: CommitStore, step: int, *, averaged: bool) -> Tensors:
    """Tensors of a commit that are evaluated, every byte compared with its manifest.

    Args:
        store: of the run.
        step: of the commit.
        averaged: take the averaged weights.

    Raises:
        StorageError: there is no such commit, or it is damaged.
    """
    group = "ema" if averaged else "model"
    return decode_weights(store.read_files(step, (STATE_NAME, TENSOR_FILES[group])))[group]


class Validation:
    """Evaluations of one run, seen from one rank.

    Args:
        rank: says whether the run evaluates beside the steps, and when to give up what is scored.
        stepper: live weights, and their average.
        early: watches the scores; None where nothing does.
        evaluator: scores commits beside the steps; None on every rank but 0, and in a run that
            evaluates in the loop.

    Attributes:
        metrics: of the newest evaluation that is recorded, on rank 0.
        abandoned: whether one was given up; the same on all ranks.
    """

    def __init__(
        self,
        rank: Rank,
        stepper: Stepper,
        *,
        early: EarlyStopping | None,
        evaluator: Evaluator | None,
    ) -> None:
        self.metrics: dict[str, float] = {}
        self.abandoned = False
        self._rank = rank
        self._job = rank.job
        self._stepper = stepper
        self._collective = rank.collective
        self._store = rank.store
        self._early = early
        self._evaluator = evaluator
        #: Both the same on all ranks.
        self._beside = rank.job.evaluates_beside
        self._outstanding: int | None = None

    def after(self, step: int, *, committed: bool) -> bool:
        """Have the live weights scored; called by all ranks where an evaluation is due.

        Args:
            step: optimizer steps behind the weights.
            committed: whether rank 0 has asked for their commit; other ranks need not know.

        Returns:
            False where that was given up; the same on all ranks.
        """
        committed = self._collective.from_main(committed)
        if committed and step < self._job.total_steps and self._hand_over(step):
            return not self.abandoned
        scored = self._score()
        if not self.abandoned:
            # Its place in the log is before this one.
            self.finish()
            self._record(step, scored, committed=committed)
        return not self.abandoned

    def catch_up(self, step: int) -> None:
        """Have the commits scored that were not when the run was interrupted; for all ranks.

        Args:
            step: of the commit whose state is live, the newest.
        """
        waiting = self._waiting(step) if self._collective.is_main else []
        for late in self._collective.from_main(waiting):
            if late == step:
                self.after(step, committed=True)
            elif not self._hand_over(late):
                self._rescore(late)
            self._store.wait()
            if self.abandoned:
                return

    def finish(self) -> None:
        """Record the evaluation that is outstanding, if one is, waiting for it; for all ranks."""
        step, self._outstanding = self._outstanding, None
        if step is None:
            return
        scored: Scored | None = None
        if self._evaluator is not None:
            try:
                with pulse.waiting("evaluator"):
                    scored = self._evaluator.result()
            except EvaluatorLostError as error:
                self._note(step, f"the evaluator is lost ({error}); from here on in the loop")
        if self._collective.from_main(scored is None):
            self._beside = False
            self._rescore(step)
            return
        self._record(step, scored, committed=True)
        if self._collective.is_main:
            # The commit was kept for its scores alone, perhaps.
            self._store.collect()

    def _waiting(self, newest: int) -> list[int]:
        """Steps of the commits that should have scores and have none, oldest first."""
        commits = self._store.commits()
        scored = {commit.step for commit in commits if commit.metrics is not None}
        steps = {commit.step for commit in commits if commit.step <= newest} - scored
        return sorted(filter(self._job.evaluates_after, steps))

    def _hand_over(self, step: int) -> bool:
        """Let the evaluator score a commit once it has answered for the one before it."""
        self.finish()
        if not self._beside:
            return False
        self._outstanding = step
        if self._evaluator is not None:
            # Only then is the commit there.
            self._store.then(partial(self._evaluator.submit, step))
        return True

    def _score(self) -> Scored | None:
        """Score the live weights, all ranks together; None on every rank but 0."""
        average, model = self._stepper.average, self._stepper.model
        with nullcontext() if average is None else average.applied_to(model):
            found = self._predict()
        return None if found is None else Scored(found, evaluate(self._job.val, found))

    def _rescore(self, step: int) -> None:
        """Score and record a commit whose state is live no more, all ranks together."""
        model = self._stepper.model
        tensors: Tensors | None = None
        if self._collective.is_main:
            try:
                averaged = self._stepper.average is not None
                with pulse.waiting("commit"):
                    tensors = weights_to_score(self._store, step, averaged=averaged)
            except StorageError as error:
                self._note(step, f"this commit stays without scores: {error}")
        if self._collective.from_main(tensors is None):
            return
        with holding(model, model.state_dict() if tensors is None else tensors):
            self._collective.copy_from_main_(list(model.state_dict().values()))
            found = self._predict()
        scored = None if found is None else Scored(found, evaluate(self._job.val, found))
        self._record(step, scored, committed=True)

    def _predict(self) -> Detections | None:
        stepper = self._stepper
        # Each rank has statistics of its own, and averages of those; a commit has rank 0's.
        self._collective.copy_from_main_(list(stepper.model.buffers()))
        config = self._job.experiment.detector.postprocess
        found = predict_all(
            stepper.model,
            self._until_stopped(self._rank.stream.eval_batches()),
            config,
            accelerator=stepper.accelerator,
            precision=stepper.precision,
            collective=self._collective,
        )
        if found is None or self.abandoned:
            return None
        return in_whole_images(found, self._job.val_tiling, config)

    def _until_stopped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass on batches, each of which is progress, until some rank is asked to stop.

        What the others have heard is known two batches later, so that nobody waits for it. All
        ranks have as many batches, and so end behind the same one.
        """
        words: deque[tuple[Tensor, Any]] = deque()
        for batch in batches:
            pulse.mark("evaluation")
            yield batch
            stop = self._rank.stop_requested()
            if self._collective.distributed:
                words.append(self._collective.ask_async(stop))
                stop = len(words) > _WORDS and _said(*words.popleft())
            if stop:
                self.abandoned = True
                break
        for word in words:
            _said(*word)
        pulse.mark("evaluation")

    def _record(self, step: int, scored: Scored | None, *, committed: bool) -> None:
        """Log scores, then attach them to their commit; does nothing on every rank but 0."""
        if scored is None:
            return
        numbers = scored.scores.numbers
        self._keep_results(step, scored)
        self.metrics = dict(numbers)
        if self._early is not None and self._job.counts_after(step):
            self._early.count(self.metrics, step=step)
        values = {f"val/{name}": value for name, value in numbers.items()}
        if self._rank.events is not None:
            per_class = {f"val/AP/{name}": v for name, v in scored.scores.per_class.items()}
            # -1 says that there is nothing to score; on a curve it would look like a score.
            defined = {k: v for k, v in {**values, **per_class}.items() if v >= 0}
            defined["val/epoch"] = step / self._job.schedule.steps_per_epoch
            self._rank.events.metrics(defined, step=step)
            self._rank.events.flush(sync=True)
        if committed:
            self._store.attach_metrics(step, values)

    def _keep_results(self, step: int, scored: Scored) -> None:
        """Leave the newest evaluation in the run folder, and samples of every one."""
        folder = self._job.path / EVALUATION
        folder.mkdir(exist_ok=True)
        results = Results.of(scored.found)
        write_results(folder / "coco_results.json", results, self._job.label_map)
        write_per_class(folder / "per_class.csv", scored.scores)
        write_samples(self._job.path / SAMPLES / f"step-{step:08d}.jpg", self._job.val, results)

    def _note(self, step: int, text: str) -> None:
        self._rank.note("evaluation", text, step=step)
