"""One optimizer step: forward, backward, sum over ranks, clip, guard, update.

A step either happens whole or not at all: when its loss or gradient is not finite, weights,
optimizer, average and batch-norm statistics are what they were before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detectors.base import Detector, Targets
from orchestrator.accelerators import Accelerator, Precision
from orchestrator.config.schema import TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.training.collective import Collective
from orchestrator.training.ema import WeightAverage
from orchestrator.training.gradients import Gradients
from orchestrator.training.optim import build_optimizer
from orchestrator.training.predictor import images_to_device


@dataclass(frozen=True)
class StepReport:
    """What one step did, equal on every rank.

    Attributes:
        losses: named losses and their sum ``loss``, mean over micro-batches and ranks.
        gradient_norm: global 2-norm before clipping.
        applied: whether the optimizer moved; false after a non-finite loss or gradient.
        overflow: the step was skipped because scaled fp16 gradients overflowed, which is the
            loss scaler's ordinary business.
        stop: some rank was asked to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    applied: bool
    overflow: bool
    stop: bool


@dataclass
class _SavedBuffers:
    """Copies of a model's buffers, taken before a forward pass that may turn out bad."""

    live: list[Tensor]
    saved: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.saved = [tensor.clone() for tensor in self.live]

    @torch.no_grad()
    def save(self) -> None:
        torch._foreach_copy_(self.saved, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.live, self.saved)


class Stepper:
    """Owns what a step changes: model, optimizer, loss scaler and weight average."""

    def __init__(
        self,
        model: Detector,
        config: TrainConfig,
        *,
        seed: int,
        accelerator: Accelerator,
        precision: Precision,
        collective: Collective,
    ) -> None:
        self.model = model
        self.config = config
        self.seed = seed
        self.accelerator = accelerator
        self.precision = precision
        self.collective = collective
        self.optimizer = build_optimizer(model, config.optimizer)
        self.scaler = accelerator.scaler(precision, config.loss_scale)
        self.average = (
            WeightAverage(model, decay=config.ema.decay, warmup_steps=config.ema.warmup_steps)
            if config.ema is not None
            else None
        )
        self.gradients = Gradients(list(model.parameters()), collective)
        self._buffers = _SavedBuffers(list(model.buffers()))

    def run(self, batch: Batch, *, learning_rate: float, stop: bool) -> StepReport:
        """Do step ``batch.step`` with this rank's share of its images."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        self._buffers.save()
        losses = self._backward(batch)
        self.gradients.finish()
        self.scaler.unscale_(self.optimizer)
        norm = self.gradients.norm()
        names = sorted(losses)
        shared = torch.stack([losses[name].float() for name in names])
        shared = torch.cat([shared / self.collective.world, shared.new_tensor([float(stop)])])
        self.collective.sum_(shared)
        # The one place where the host waits for the device.
        *values, stops, norm_value = torch.cat([shared, norm.float().reshape(1)]).tolist()
        finite_loss = all(math.isfinite(value) for value in values)
        finite = finite_loss and math.isfinite(norm_value)
        if finite:
            if self.config.clip_norm is not None:
                self.gradients.clip_(norm, self.config.clip_norm)
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.model, batch.step + 1)
        else:
            self._buffers.restore()
        if self.scaler.is_enabled():
            self.scaler.update()
        named = dict(zip(names, values, strict=True))
        return StepReport(
            losses={"loss": math.fsum(values), **named},
            gradient_norm=norm_value,
            applied=finite,
            overflow=finite_loss and not finite and self.scaler.is_enabled(),
            stop=stops > 0,
        )

    def _backward(self, batch: Batch) -> dict[str, Tensor]:
        """Accumulate gradients of this rank's micro-batches; return mean named losses."""
        device = self.collective.device
        images = images_to_device(batch, device)
        targets = Targets(
            boxes=torch.from_numpy(batch.boxes).to(device, non_blocking=True),
            labels=torch.from_numpy(batch.labels).to(device, non_blocking=True),
            valid=torch.from_numpy(batch.valid).to(device, non_blocking=True),
        )
        pieces = self.config.accumulate
        size = len(batch) // pieces
        totals: dict[str, Tensor] = {}
        self.gradients.zero()
        for piece in range(pieces):
            rows = slice(piece * size, (piece + 1) * size)
            torch.manual_seed(_device_seed(self.seed, batch.step, self.collective.rank, piece))
            if piece == pieces - 1:
                self.gradients.expect_last()
            with self.accelerator.autocast(self.precision):
                losses = self.model.loss(images[rows], Targets(*(t[rows] for t in targets)))
            total = torch.stack(list(losses.values())).sum() / pieces
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.items():
                share = value.detach() / pieces
                totals[name] = totals[name] + share if name in totals else share
        return totals


def _device_seed(seed: int, step: int, rank: int, piece: int) -> int:
    """Seed of the device generator for one forward pass: a pure function, nothing to save."""
    mixed = seed
    for part in (step, rank, piece):
        # SplitMix64 finaliser (Steele et al. 2014): neighbouring inputs give unrelated seeds.
        mixed = (mixed ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
