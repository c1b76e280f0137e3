"""The largest batch that a device can learn from, found by trying.

A trial is two steps of the experiment on the worst batch there can be: every slot holds a box, and
the images are of the network's size, as all are. Memory grows by the same amount with every image,
so that a few trials suffice.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from orchestrator.accelerators import Accelerator, Kind, of_this_process
from orchestrator.config.resolve import ResolvedExperiment
from orchestrator.data.batch import Batch
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.memory import peak_bytes, wants_memory
from orchestrator.training.collective import Collective
from orchestrator.training.stepper import Stepper

#: Bytes that a trial with so many images took at its peak; None where they did not suffice.
Trial: TypeAlias = Callable[[int], "int | None"]

#: Fewest images of a trial: some networks take statistics over the batch of a single cell.
_LEAST = 2


class Largest(NamedTuple):
    """What :func:`largest` found.

    Attributes:
        images: that fit; 0 if not even the fewest do.
        peak: bytes they took; of the fewest where none fit.
    """

    images: int
    peak: int | None


@dataclass(frozen=True)
class Fit:
    """The answer for an experiment.

    Attributes:
        largest: images at a time on one device.
        memory, limit: bytes of the device, and those of them that may be used.
        boxes: slots of an image, all filled.
        lines: of the section ``train`` for the experiment's own batch, and for the largest one.
    """

    largest: Largest
    memory: int
    limit: int
    boxes: int
    lines: list[str]


def largest(trial: Trial, limit: int, *, most: int, least: int = _LEAST) -> Largest:
    """The most images whose trial stays within a limit.

    Args:
        trial: takes the number of images.
        limit: bytes.
        most: images worth trying.
        least: images of the first trial.
    """
    fits, peak = least, trial(least)
    if peak is None or peak > limit:
        return Largest(0, peak)
    too_many, candidate = most + 1, min(2 * least, most)
    while candidate > fits:
        found = trial(candidate)
        if found is None or found > limit:
            too_many = candidate
            candidate = (fits + too_many) // 2
            continue
        each = (found - peak) / (candidate - fits)
        fits, peak = candidate, found
        room = int((limit - peak) / each) if each > 0 else fits
        candidate = min(fits + room, too_many - 1, 8 * fits)
    return Largest(fits, peak)


def fit(
    resolved: ResolvedExperiment,
    *,
    memory: int | None,
    headroom: float,
    boxes: int | None,
    classes: int | None,
    watch: Callable[[int, int | None], None] = lambda images, peak: None,
) -> Fit:
    """Find the largest batch of an experiment on a device of this machine.

    Args:
        resolved: the experiment.
        memory: bytes; None for those of the card.
        headroom: fraction of them that stays free.
        boxes: of every image; None for the slots of the experiment's data set.
        classes: of the detector; None for those of the data set, which is read for either.
        watch: told of each trial the images and the bytes they took; None where they did not fit.

    Raises:
        ConfigError: memory has to be given here, or not one image fits.
        OrchestratorError: a trial ended without saying what it took.
    """
    experiment = resolved.experiment
    accelerator = of_this_process(experiment.cluster.accelerator)
    found = accelerator.memory() if memory is None else memory
    if found is None:
        raise ConfigError(
            "--memory: a CPU shares the machine's memory with everything else that runs there, so "
            "the limit has to be given. Next: add --memory with the bytes one worker may use, such "
            "as --memory 8e9"
        )
    if boxes is None or classes is None:
        slots, known = _of_data(resolved)
        boxes, classes = boxes or slots, classes or known
    limit = int(found * (1 - headroom))
    train, workers = experiment.train, experiment.cluster.workers
    share = train.batch_size // workers
    trials = _Trials(resolved, accelerator.kind, boxes, classes)

    def trial(images: int) -> int | None:
        peak = trials(images)
        watch(images, peak)
        return peak

    result = largest(trial, limit, most=max(1024, share))
    if not result.images:
        needed = "more than there is" if result.peak is None else f"{result.peak / 1e9:.2f} GB"
        raise ConfigError(
            f"detector: {_LEAST} images at a time take {needed}, and {limit / 1e9:.2f} of "
            f"{found / 1e9:.2f} GB may be used. Next: lower detector.input_size or detector.width, "
            "or set train.precision to bf16 where the device has it"
        )
    shards = train.virtual_shards if isinstance(train.virtual_shards, int) else None
    lines = _lines(result.images, train.batch_size, workers, shards=shards)
    return Fit(result, found, limit, boxes, lines)


def _lines(images: int, batch_size: int, workers: int, *, shards: int | None = None) -> list[str]:
    """Of the experiment's own batch with the fewest pieces, and of the largest in one piece.

    Args:
        images: that fit at a time.
        batch_size, workers: of the experiment.
        shards: ``train.virtual_shards`` where that is a number, which takes the place of pieces.
    """
    note = "another objective than that of the experiment: see optimizer.lr"
    if shards is None:
        share = batch_size // workers
        pieces = next(n for n in range(1, share + 1) if share % n == 0 and share // n <= images)
        own = f"batch_size: {batch_size}\naccumulate: {pieces}"
        return [own, f"batch_size: {images * workers}  # {note}\naccumulate: 1"]
    more = (n for n in range(shards, batch_size + 1) if batch_size % n == n % workers == 0)
    own = f"batch_size: {batch_size}"
    own += f"\nvirtual_shards: {next(n for n in more if batch_size // n <= images)}"
    return [own, f"batch_size: {images * shards}  # {note}\nvirtual_shards: {shards}"]


def _of_data(resolved: ResolvedExperiment) -> tuple[int, int]:
    """Boxes that a batch of the experiment has room for in each image, and its classes."""
    # Reads the annotations, which given numbers make unnecessary.
    from orchestrator.runs.plan import make_plan

    with tempfile.TemporaryDirectory() as nowhere:
        plan = make_plan(resolved, Path(nowhere))
    return plan.batches.box_slots, len(plan.job.label_map)


@dataclass(frozen=True)
class _Trials:
    """Trials of an experiment: on a device in this process, on a CPU each in one of its own.

    A process keeps on a CPU what it ever took, so that the peak of a second trial would be that of
    the first.
    """

    resolved: ResolvedExperiment
    kind: Kind
    slots: int
    classes: int

    def __call__(self, images: int) -> int | None:
        if self.kind != "cpu":
            return self.run(images)
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=self._tell, args=(images, sender))
        process.start()
        sender.close()
        try:
            found: int | Exception | None = receiver.recv()
        except EOFError:
            found = None
        process.join()
        if isinstance(found, Exception):
            raise found
        # A process that takes too much is killed by the system.
        if process.exitcode not in (0, -signal.SIGKILL):
            raise OrchestratorError(
                f"a trial with {images} images ended with the code {process.exitcode} and without "
                "an answer. Next: see what it has printed above"
            )
        return found

    def _tell(self, images: int, sender: Connection) -> None:
        """Send what :meth:`run` returns or raises."""
        found: int | Exception | None
        try:
            found = self.run(images)
        except Exception as error:
            if not isinstance(error, OrchestratorError):
                # What is raised on the other side does not say where this was.
                traceback.print_exc()
            found = error
        sender.send(found)

    def run(self, images: int) -> int | None:
        """Two steps; the peak, or None."""
        accelerator = Accelerator(self.kind)
        accelerator.forget_peak()
        try:
            self._steps(accelerator, images)
            peak = accelerator.peak_memory()
        except (MemoryError, RuntimeError) as error:
            if not wants_memory(error):
                raise
            peak = None
        gc.collect()
        accelerator.forget_peak()
        return peak_bytes() if peak is not None and self.kind == "cpu" else peak

    def _steps(self, accelerator: Accelerator, images: int) -> None:
        # Here, so that the process of a trial imports no more than it needs.
        from orchestrator.training.session import initial_model

        experiment = self.resolved.experiment
        train = experiment.train.model_copy(
            update={"batch_size": images, "accumulate": 1, "virtual_shards": None}
        )
        accelerator.set_determinism(train.deterministic, None)
        device = accelerator.device()
        model = initial_model(experiment, self.classes, accelerator, device)
        stepper = Stepper(
            model,
            train,
            seed=experiment.seed,
            accelerator=accelerator,
            precision=accelerator.resolve_precision(train.precision),
            collective=Collective(device),
        )
        with accelerator.naming_operators():
            for step in range(2):
                batch = worst_batch(step, images, model.train_canvases[0], self.slots)
                stepper.run(batch, learning_rate=0.0, stop=False)


def worst_batch(step: int, images: int, size: tuple[int, int], slots: int) -> Batch:
    """Noise with a box in every slot."""
    rng = np.random.default_rng(step)
    batch = Batch.unfilled(images, size, slots)
    low = rng.uniform(0, 0.5, (images, slots, 2))
    corners = np.concatenate([low, low + rng.uniform(0.05, 0.5, low.shape)], axis=2)
    batch.images[:] = rng.integers(0, 256, batch.images.shape, dtype=np.uint8)
    batch.boxes[:] = corners * np.array([size[1], size[0]] * 2)
    batch.labels[:] = 0
    batch.valid[:] = True
    batch.sample_ids[:] = batch.image_ids[:] = np.arange(images)
    batch.sizes[:] = size
    batch.transforms[:] = 1.0, 1.0, 0.0, 0.0
    return replace(batch, step=step)
