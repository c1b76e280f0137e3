"""Training steps: how many images a second, and which part of a step takes the time.

Steps are those of a real run without Ray: same batches, same stepper. First they run freely, for
the throughput, which on a device means a step ahead of its numbers; then once more with a clock at
every boundary, which on a device means waiting for it there, for the parts.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from detectors.base import Detector
from orchestrator.accelerators import Accelerator
from orchestrator.benchmark.clock import Clock
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.data.batch import Batch
from orchestrator.data.stream.local import LocalStream
from orchestrator.errors import DataError
from orchestrator.evaluation.coco import evaluate
from orchestrator.runs.plan import Plan, make_plan
from orchestrator.training.collective import Collective
from orchestrator.training.feeding import Inputs, fed
from orchestrator.training.predictor import in_whole_images, predict_all
from orchestrator.training.schedules import LearningRate
from orchestrator.training.session import initial_model
from orchestrator.training.stepper import Stepper, StepUnderWay

PARTS = ("data wait", "forward", "backward", "optimizer", "rest")


@dataclass(frozen=True)
class TrainingSpeed:
    """What :func:`measure_training` found; seconds are wall time.

    Attributes:
        batch_size: images a step.
        steps, skipped: measured, and done before them without being counted.
        step_s: of each measured step, data wait included.
        images_per_s: batch size over the mean of those.
        parts: mean seconds a step by :data:`PARTS`, of the steps with a clock in them.
    """

    batch_size: int
    steps: int
    skipped: int
    step_s: list[float]
    images_per_s: float
    parts: dict[str, float]


@dataclass(frozen=True)
class EvaluationSpeed:
    """Seconds of a validation.

    Attributes:
        images: that were seen.
        detect_s: an image, its data included.
        score_s: of scoring, all of the validation set: images that were not seen count as missed,
            and reading their annotations takes its time as well.
    """

    images: int
    detect_s: float
    score_s: float


class Trainer:
    """The steps of an experiment in this process, from random weights.

    Args:
        resolved: the experiment.
        accelerator: where it computes.
    """

    def __init__(self, resolved: ResolvedExperiment, accelerator: Accelerator) -> None:
        experiment = resolved.experiment
        with tempfile.TemporaryDirectory() as nowhere:
            self.plan: Plan = make_plan(resolved, Path(nowhere))
        job = self.plan.job
        self.accelerator = accelerator
        self.precision = accelerator.resolve_precision(experiment.train.precision)
        accelerator.set_determinism(experiment.train.deterministic, None)
        device = accelerator.device()
        self.model: Detector = initial_model(experiment, len(job.label_map), accelerator, device)
        self.collective = Collective(device)
        self.stepper = Stepper(
            self.model,
            experiment.train,
            seed=experiment.seed,
            accelerator=accelerator,
            precision=self.precision,
            collective=self.collective,
        )
        self.rate = LearningRate(
            schedule=experiment.train.schedule,
            base=experiment.train.base_rate,
            steps_per_epoch=job.schedule.steps_per_epoch,
            total_steps=job.schedule.total_steps,
        )

    def steps(self, count: int, clock: Clock | None = None) -> list[float]:
        """Do the first ``count`` steps of the schedule; seconds of each.

        An experiment of fewer steps goes through them again.
        """
        spent: list[float] = []
        with ExitStack() as stack:
            if clock is not None:
                self._watch(stack, clock)
            while len(spent) < count:
                stop = min(self.plan.job.total_steps, count - len(spent))
                stream = LocalStream(self.plan.batches)
                if self.accelerator.kind != "cpu":
                    stream.allocate = self.accelerator.host_array
                batches = stream.train_batches(0, stop)
                if clock is None:
                    spent += self._freely(batches, stop)
                else:
                    spent += (self._clocked(batches, clock) for _ in range(stop))
        return spent

    def _freely(self, batches: Iterator[Batch], stop: int) -> Iterator[float]:
        """Do steps 0 to ``stop`` as a run does; seconds of each, its batch included."""
        begun: deque[tuple[Batch, StepUnderWay]] = deque()

        def begin(batch: Batch, inputs: Inputs | None = None) -> tuple[Batch, StepUnderWay]:
            rate = self.rate(batch.step)
            return batch, self.stepper.begin(batch, learning_rate=rate, stop=False, inputs=inputs)

        def read(*, keep: int) -> None:
            while len(begun) > keep:
                _, oldest = begun.popleft()
                if not self.stepper.read(oldest).applied:
                    # Those begun after it have changed nothing.
                    again = [begin(batch) for batch, _ in begun]
                    begun.clear()
                    begun.extend(again)

        started = time.perf_counter()
        for batch, inputs in fed(batches, self.collective.device):
            begun.append(begin(batch, inputs))
            read(keep=0 if batch.step == stop - 1 else self.stepper.ahead)
            now = time.perf_counter()
            yield now - started
            started = now

    def _clocked(self, batches: Iterator[Batch], clock: Clock) -> float:
        """Do the next step with a clock in it; its seconds."""
        started = time.perf_counter()
        with clock.part("data wait"):
            batch = next(batches)
        with clock.part("rest"):
            self.stepper.run(batch, learning_rate=self.rate(batch.step), stop=False)
        return time.perf_counter() - started

    def _watch(self, stack: ExitStack, clock: Clock) -> None:
        watched: list[tuple[Any, str, str]] = [
            # Not of the model: a graph takes its place.
            (self.stepper, "_loss_terms", "forward"),
            (self.model, "loss_divisors", "forward"),
            (self.stepper, "backward", "backward"),
            (self.stepper.optimizer, "step", "optimizer"),
        ]
        if self.stepper.average is not None:
            watched.append((self.stepper.average, "update", "optimizer"))
        for one in watched:
            stack.enter_context(clock.inside(*one))

    def evaluate(self, batches: int) -> EvaluationSpeed:
        """Validate on the first so many batches.

        Raises:
            DataError: none of their images can be read.
        """
        config = self.plan.job.experiment.detector.postprocess
        stream = LocalStream(self.plan.batches)
        started = time.perf_counter()
        found = predict_all(
            self.model,
            islice(stream.eval_batches(), batches),
            config,
            accelerator=self.accelerator,
            precision=self.precision,
            collective=self.collective,
        )
        assert found is not None, "a single process is the main one"
        self.accelerator.synchronize()
        middle = time.perf_counter()
        images = len(found.images)
        if not images:
            raise DataError(
                f"no image of the first {batches} batches of validation can be read. Next: see "
                "data.root, and `orchestrator check` for the images that cannot be"
            )
        whole = in_whole_images(found, self.plan.job.val_tiling, config)
        evaluate(self.plan.job.val, whole)
        return EvaluationSpeed(images, (middle - started) / images, time.perf_counter() - middle)


def measure_training(trainer: Trainer, *, steps: int, skip: int) -> TrainingSpeed:
    """Throughput, then parts.

    Args:
        trainer: fresh; it is trained.
        steps: to measure.
        skip: first ones that are left out, as allocators and caches fill there.
    """
    spent = trainer.steps(skip + steps)[skip:]
    clock = Clock(trainer.accelerator)
    trainer.steps(steps, clock)
    batch = trainer.plan.job.schedule.batch_size
    return TrainingSpeed(
        batch_size=batch,
        steps=steps,
        skipped=skip,
        step_s=spent,
        images_per_s=batch / statistics.mean(spent),
        parts={name: clock.seconds[name] / steps for name in PARTS},
    )


def write_trace(trainer: Trainer, path: Path, *, steps: int = 3) -> None:
    """A trace of a few steps for chrome://tracing, Perfetto or TensorBoard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainer.accelerator.kind == "gpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        trainer.steps(steps)
    profile.export_chrome_trace(str(path))
