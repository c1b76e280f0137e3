"""A run's schedule as a table: what the optimizer is given at every step that matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config.schema import Experiment, SGDOptimizer
from orchestrator.errors import ConfigError
from orchestrator.training.schedules import LearningRate, decay_at, require_warmup_ends, shape_of


@dataclass(frozen=True)
class Row:
    """One step of a run.

    Attributes:
        step: counted from 0.
        epoch: passes over the training images before it.
        lr: learning rate.
        group_lrs: of each parameter group of its own, in the order of ``train.optimizer.groups``.
        momentum: of SGD, or the decay of AdamW's first moment.
        ema_decay: of the moving average in the update that follows; None without one.
        phase: what happens there.
    """

    step: int
    epoch: float
    lr: float
    group_lrs: tuple[float, ...]
    momentum: float
    ema_decay: float | None
    phase: str


@dataclass(frozen=True)
class ScheduleTable:
    """The schedule of an experiment on a training set of a given size.

    Attributes:
        experiment: whose schedule.
        images: that take part in training.
    """

    experiment: Experiment
    images: int

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise ConfigError(
                f"train.batch_size is {self.experiment.train.batch_size}, but there are "
                f"{self.images} training images; one step would not be full"
            )
        require_warmup_ends(self.experiment.train, steps_per_epoch=self.steps_per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return self.images // self.experiment.train.batch_size

    @property
    def rate(self) -> LearningRate:
        """The learning rate of every step."""
        train = self.experiment.train
        return LearningRate(
            schedule=train.schedule,
            base=train.base_rate,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.steps_per_epoch * train.epochs,
        )

    def facts(self) -> dict[str, str]:
        """What holds at every step, for people."""
        train, rate = self.experiment.train, self.rate
        optimizer = train.optimizer
        last = rate.total_steps if train.max_steps is None else train.max_steps
        facts = {
            "images": f"{self.images}",
            "batch": f"{train.batch_size} over all workers"
            + (f", in {train.accumulate} pieces each" if train.accumulate > 1 else ""),
            "steps": f"{rate.total_steps} in {train.epochs} epochs of {self.steps_per_epoch}"
            + (f", stopped after {last}" if last < rate.total_steps else ""),
            "optimizer": f"{optimizer.name}, weight decay {optimizer.weight_decay:g}"
            + ("" if optimizer.decay_norm_and_bias else ", none on normalisation and biases"),
        }
        for index, group in enumerate(optimizer.groups):
            decay = "" if group.weight_decay is None else f", weight decay {group.weight_decay:g}"
            facts[f"group {index}"] = (
                f"{group.kind} {' '.join(group.names)}: rate x {group.lr_factor:g}{decay}"
            )
        if train.scaling is not None:
            facts["rate"] = train.scaling
        facts["schedule"] = self._schedule()
        facts["clipping"] = "none" if train.clip_norm is None else f"norm {train.clip_norm:g}"
        scaled = train.precision in ("fp16", "auto")
        facts["precision"] = train.precision + (
            f", loss scale {train.loss_scale}" if scaled else ""
        )
        return facts

    def _schedule(self) -> str:
        schedule, rate = self.experiment.train.schedule, self.rate
        warmup = ""
        if rate.warmup_steps:
            warmup = f", warm-up of {rate.warmup_steps} steps from {schedule.warmup_start:g}"
            warmup += ", the last at the base rate" if schedule.warmup_ends == "with" else ""
        return shape_of(schedule) + warmup

    def rows(self) -> Iterator[Row]:
        """The first step, the end of the warm-up, each change of the rate and the last step."""
        train = self.experiment.train
        optimizer, rate = train.optimizer, self.rate
        momentum = optimizer.momentum if isinstance(optimizer, SGDOptimizer) else optimizer.betas[0]
        for step, epoch, lr in rate.table():
            yield Row(
                step=step,
                epoch=epoch,
                lr=lr,
                group_lrs=tuple(lr * group.lr_factor for group in optimizer.groups),
                momentum=momentum,
                ema_decay=None if train.ema is None else decay_at(step + 1, **dict(train.ema)),
                phase="warm-up" if step < rate.warmup_steps else "",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {
            "images": self.images,
            "steps_per_epoch": self.steps_per_epoch,
            "total_steps": self.rate.total_steps,
            "warmup_steps": self.rate.warmup_steps,
            "facts": self.facts(),
            "rows": [dict(row.__dict__) for row in self.rows()],
        }

    def to_text(self) -> str:
        """Facts, then the table."""
        facts = self.facts()
        width = max(map(len, facts))
        lines = [f"{name:<{width}}  {text}" for name, text in facts.items()]
        groups = range(len(self.experiment.train.optimizer.groups))
        head = ["step", "epoch", "lr", *(f"lr of group {index}" for index in groups), "momentum"]
        rows = list(self.rows())
        if self.experiment.train.ema is not None:
            head.append("ema decay")
        table = [[*head, ""]]
        for row in rows:
            numbers = [row.lr, *row.group_lrs, row.momentum]
            numbers += [] if row.ema_decay is None else [row.ema_decay]
            cells = [f"{row.step}", f"{row.epoch:.2f}", *(f"{number:.6g}" for number in numbers)]
            table.append([*cells, row.phase])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            padded = [cell.rjust(size) for cell, size in zip(cells, widths, strict=True)]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)
