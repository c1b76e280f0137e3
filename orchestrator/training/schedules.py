"""Learning rates, and the decay of averaged weights, as pure functions of the step.

Nothing here remembers anything: a resumed run asks for the rate of its step and gets the rate
the unbroken run had there.

Steps count from 0. ``steps_per_epoch`` may not divide a warm-up given in epochs; it is rounded to
whole steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

from orchestrator.config.schema import (
    ConstantSchedule,
    CosineSchedule,
    MultistepSchedule,
    Schedule,
    TrainConfig,
)
from orchestrator.errors import ConfigError

#: What becomes of a rate that had come to its end; see ``train.continue``.
Continuation: TypeAlias = Literal["stretch", "restart", "hold"]


@dataclass(frozen=True)
class Extension:
    """A run that was made longer after it had begun.

    Attributes:
        epochs: how long it was to be before.
        how: what the rate does from there on.
    """

    epochs: int
    how: Continuation


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step of one run.

    Attributes:
        schedule: its typed configuration.
        base: the rate that factors multiply (``train.optimizer.lr``, perhaps scaled).
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: optimizer steps in the run.
        extensions: how the run was made longer, oldest first; of a schedule that has a horizon.
    """

    schedule: Schedule
    base: float
    steps_per_epoch: int
    total_steps: int
    extensions: tuple[Extension, ...] = ()

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up before the schedule proper."""
        if self.schedule.warmup_steps is not None:
            return self.schedule.warmup_steps
        return round(self.schedule.warmup_epochs * self.steps_per_epoch)

    def __call__(self, step: int) -> float:
        """Rate of optimizer step ``step``.

        Warm-up follows the MindSpore SSD code, ``start + (base - start) * step / warmup``,
        so that step 0 has exactly ``warmup_start``; where it ends ``with`` its last step, the
        MindSpore M2Det code, ``step + 1`` for ``step``.
        """
        warmup = self.warmup_steps
        if step < warmup:
            start = self.schedule.warmup_start
            done = step + (self.schedule.warmup_ends == "with")
            return start + (self.base - start) * done / warmup
        match self.schedule:
            case ConstantSchedule():
                return self.base
            case CosineSchedule(end_factor=end_factor, period_epochs=period):
                # MindSpore SSD lr_schedule.py: half a cosine over the steps left after warm-up.
                end = self.base * end_factor
                first, length = self._falls(step, warmup)
                if period is not None:
                    length = period * self.steps_per_epoch
                progress = min(1.0, (step - first) / max(1, length))
                return end + (self.base - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
            case MultistepSchedule(milestones=milestones, factors=factors):
                epoch = step / self.steps_per_epoch
                rate = self.base
                for milestone, factor in zip(milestones, factors, strict=True):
                    if epoch >= milestone:
                        rate = self.base * factor
                return rate

    def _falls(self, step: int, warmup: int) -> tuple[int, float]:
        """First step and length of the fall from the base rate that ``step`` belongs to."""
        ends = [*(one.epochs * self.steps_per_epoch for one in self.extensions), self.total_steps]
        first, last = warmup, ends[0]
        for extension, old, new in zip(self.extensions, ends, ends[1:], strict=False):
            if extension.how == "stretch":
                last = new
            elif extension.how == "restart":
                if step < old:
                    # What was said after that is about the falls that follow.
                    break
                first, last = old, new
        return first, last - first

    def table(self) -> list[tuple[int, float, float]]:
        """``(step, epoch, rate)`` at the start, the end of warm-up, each kink and the end."""
        steps = {0, self.warmup_steps, self.total_steps - 1}
        if isinstance(self.schedule, MultistepSchedule):
            for milestone in self.schedule.milestones:
                first = math.ceil(milestone * self.steps_per_epoch)
                steps |= {first - 1, first}
        else:
            steps |= {round(self.total_steps * share / 8) for share in range(1, 8)}
        inside = sorted(step for step in steps if 0 <= step < self.total_steps)
        return [(step, step / self.steps_per_epoch, self(step)) for step in inside]


def ends_with_run(schedule: Schedule) -> bool:
    """Whether the rate comes to its end where the run does, and so depends on its length.

    Such a schedule takes its first step and its length from :meth:`LearningRate._falls`, which
    knows what becomes of it when the run is made longer.
    """
    match schedule:
        case CosineSchedule(period_epochs=period):
            return period is None
        case ConstantSchedule() | MultistepSchedule():
            return False


def shape_of(schedule: Schedule) -> str:
    """What the rate does after the warm-up, for people."""
    match schedule:
        case ConstantSchedule():
            return "constant"
        case CosineSchedule(end_factor=end_factor, period_epochs=period):
            length = "" if period is None else f" over {period:g} epochs"
            return f"cosine{length} to x {end_factor:g}"
        case MultistepSchedule(milestones=milestones, factors=factors):
            pairs = zip(milestones, factors, strict=True)
            return "multistep, " + ", ".join(f"x {f:g} at epoch {m:g}" for m, f in pairs)


def require_warmup_ends(train: TrainConfig, *, steps_per_epoch: int) -> None:
    """Refuse a warm-up that a run does not leave, so that its base rate would never be used.

    What counts is the run of ``train.epochs``: a quick look of ``train.max_steps`` may end sooner.

    Raises:
        ConfigError: with the arithmetic.
    """
    rate = LearningRate(
        schedule=train.schedule,
        base=train.base_rate,
        steps_per_epoch=steps_per_epoch,
        total_steps=steps_per_epoch * train.epochs,
    )
    if rate.warmup_steps < rate.total_steps:
        return
    steps = f"{rate.total_steps} step{'' if rate.total_steps == 1 else 's'}"
    in_steps = train.schedule.warmup_steps is not None
    given = "warmup_steps" if in_steps else "warmup_epochs"
    value = f"{rate.warmup_steps}" if in_steps else f"{train.schedule.warmup_epochs:g}"
    rounded = "" if in_steps else f", which are {rate.warmup_steps} steps"
    raise ConfigError(
        f"train.schedule.{given} is {value}{rounded}, and the whole run has {steps} "
        f"({train.epochs} epochs of {steps_per_epoch}), so the rate would never get to "
        f"train.optimizer.lr. Next: set train.schedule.warmup_steps to less than "
        f"{rate.total_steps}, such as {min(steps_per_epoch, rate.total_steps - 1)}, or raise "
        "train.epochs"
    )


def decay_at(updates: int, *, decay: float, warmup_steps: int) -> float:
    """Decay of the average of the weights at update number ``updates`` (1 is the first)."""
    if warmup_steps == 0:
        return decay
    return decay * (1.0 - math.exp(-updates / warmup_steps))
