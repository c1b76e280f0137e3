"""One optimizer step: forward, backward, sum over ranks, clip, guard, update.

A step either happens whole or not at all: when its loss or gradient, or the weights or the average
that it would change, are not finite, then weights, optimizer, average, loss scaler and batch-norm
statistics are what they were before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
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
        applied: whether the optimizer moved; false when anything was not finite.
        sound: whether weights and average were finite when the step began.
        overflow: the step was skipped because scaled fp16 gradients overflowed, which is the
            loss scaler's ordinary business.
        stop: some rank was asked to stop.
    """

    losses: dict[str, float]
    gradient_norm: float
    applied: bool
    sound: bool
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
            group["lr"] = learning_rate
        self._buffers.save()
        losses = self.backward(batch)
        self.gradients.finish()
        self.scaler.unscale_(self.optimizer)
        norm = self.gradients.norm()
        names = sorted(losses)
        shared = torch.stack([losses[name].float() for name in names])
        peak = largest([*self.model.parameters(), *self._averaged()])
        stopping = shared.new_tensor([float(stop)])
        shared = torch.cat([shared / self.collective.world, stopping, peak.reshape(1)])
        self.collective.sum_(shared)
        # The one place where the host waits for the device.
        *values, stops, peak_value, norm_value = torch.cat(
            [shared, norm.float().reshape(1)]
        ).tolist()
        sound = math.isfinite(peak_value)
        finite_loss = sound and all(math.isfinite(value) for value in values)
        finite = finite_loss and math.isfinite(norm_value)
        overflow = finite_loss and not finite and self.scaler.is_enabled()
        if finite:
            if self.config.clip_norm is not None:
                self.gradients.clip_(norm, self.config.clip_norm)
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update(self.model, batch.step + 1)
        else:
            self._buffers.restore()
        if self.scaler.is_enabled():
            before = None if finite or overflow else self.scaler.state_dict()
            self.scaler.update()
            if before is not None:
                self.scaler.load_state_dict(before)
        named = dict(zip(names, values, strict=True))
        return StepReport(
            losses={"loss": math.fsum(values), **named},
            gradient_norm=norm_value,
            applied=finite,
            sound=sound,
            overflow=overflow,
            stop=stops > 0,
        )

    def _averaged(self) -> list[Tensor]:
        return [] if self.average is None else list(self.average.tensors.values())

    def damaged(self) -> list[str]:
        """Names of the tensors of the state that hold a NaN or an infinity."""
        named = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, parameter in self.model.named_parameters():
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named[f"optimizer {kind}/{name}"] = value
        if self.average is not None:
            named |= {f"ema {name}": tensor for name, tensor in self.average.tensors.items()}
        tensors = {n: t for n, t in named.items() if t.is_floating_point() and t.numel()}
        # One wait for the device in the ordinary case, however many tensors there are.
        if math.isfinite(largest(tensors.values()).item()):
            return []
        return [name for name, t in tensors.items() if not math.isfinite(largest([t]).item())]

    def backward(self, batch: Batch) -> dict[str, Tensor]:
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


@torch.no_grad()
def largest(tensors: Iterable[Tensor]) -> Tensor:
    """Largest magnitude in the floating-point tensors, a float32 scalar; not finite if any is."""
    floating = [t for t in tensors if t.is_floating_point() and t.numel()]
    norms = torch._foreach_norm(floating, math.inf)
    # Step counters of optimizers stay on the host.
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max()


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
