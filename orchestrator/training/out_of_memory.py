"""Too little memory for a step, told so that somebody can do something about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.accelerators import Accelerator
from orchestrator.errors import ConfigError
from orchestrator.memory import peak_bytes, wants_memory
from orchestrator.training.job import TrainingJob


@contextmanager
def explained(job: TrainingJob, step: int, *, accelerator: Accelerator) -> Iterator[None]:
    """Turn want of memory inside into an error with the lines to change.

    Args:
        job: the run.
        step: that is done inside.
        accelerator: where.

    Raises:
        ConfigError: there was too little memory.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not wants_memory(error):
            raise
        raise ConfigError(_text(job, step, accelerator)) from error


def _text(job: TrainingJob, step: int, accelerator: Accelerator) -> str:
    train = job.experiment.train
    parts = job.shards.count or job.experiment.cluster.workers
    images = train.batch_size // (parts * train.accumulate)
    peak = peak_bytes() if accelerator.kind == "cpu" else accelerator.peak_memory()
    lines = "\n  or\n".join(f"    train:\n      {line}" for line in _remedies(job, parts))
    return (
        f"train.batch_size: out of memory in step {step}, {images} "
        f"image{'' if images == 1 else 's'} at a time on {accelerator.kind}, with "
        f"{peak / 2**30:.1f} GiB in use at most. Next: change the experiment, and give it another "
        f"name if it has checkpoints already:\n{lines}"
    )


def _remedies(job: TrainingJob, parts: int) -> Iterator[str]:
    """Lines of the section ``train``, each of which asks for less memory."""
    train, workers = job.experiment.train, job.experiment.cluster.workers
    share = train.batch_size // parts
    fixed = isinstance(train.virtual_shards, int)
    if fixed:
        more = range(parts + 1, train.batch_size + 1)
        counts = [n for n in more if train.batch_size % n == 0 and n % workers == 0]
        note = "the same objective; batch norm sees fewer images together"
        if counts:
            yield f"virtual_shards: {counts[0]}  # {note}"
    else:
        counts = [n for n in range(train.accumulate + 1, share + 1) if share % n == 0]
        if counts:
            yield (
                f"accumulate: {counts[0]}  # the same objective; batch norm sees "
                f"{share // counts[0]} image{'' if share == counts[0] else 's'} together"
            )
    step = parts if fixed else parts * train.accumulate
    smaller = train.batch_size // 2 // step * step
    if smaller:
        yield f"batch_size: {smaller}  # another objective: lower optimizer.lr as well"
    if not counts and not smaller:
        yield "precision: bf16  # or a smaller detector.input_size"
