"""Learning rates as pure functions of the step.

Nothing here remembers anything: a resumed run asks for the rate of its step and gets the rate
the unbroken run had there.

Steps count from 0. ``steps_per_epoch`` may not divide a warm-up given in epochs; it is rounded to
whole steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from orchestrator.config.schema import (
    ConstantSchedule,
    CosineSchedule,
    MultistepSchedule,
    Schedule,
)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step of one run.

    Attributes:
        schedule: its typed configuration.
        base: the rate that factors multiply (``train.optimizer.lr``).
        steps_per_epoch: optimizer steps in an epoch.
        total_steps: optimizer steps in the run.
    """

    schedule: Schedule
    base: float
    steps_per_epoch: int
    total_steps: int

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
                length: float = self.total_steps - warmup
                if period is not None:
                    length = period * self.steps_per_epoch
                progress = min(1.0, (step - warmup) / max(1, length))
                return end + (self.base - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
            case MultistepSchedule(milestones=milestones, factors=factors):
                epoch = step / self.steps_per_epoch
                rate = self.base
                for milestone, factor in zip(milestones, factors, strict=True):
                    if epoch >= milestone:
                        rate = self.base * factor
                return rate

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
