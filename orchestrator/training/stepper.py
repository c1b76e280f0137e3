"""One optimizer step: forward, backward, sum over ranks, clip, guard, update.

A step either happens whole or not at all: when its loss or gradient, or the weights or the average
that it would change, are not finite, then weights, optimizer, average, loss scaler and batch-norm
statistics are what they were before it. :mod:`orchestrator.training.update` says who decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from detectors.base import Detector
from detectors.draws import piece_of_batch
from detectors.structures import LossTerm, Targets
from orchestrator.accelerators import Accelerator, HostCopy, Precision
from orchestrator.config.schema import TrainConfig
from orchestrator.data.batch import Batch
from orchestrator.training.collective import Collective
from orchestrator.training.ema import WeightAverage
from orchestrator.training.feeding import Inputs, inputs_of
from orchestrator.training.gradients import Gradients
from orchestrator.training.optim import build_optimizer
from orchestrator.training.ordered_sum import OrderedSum
from orchestrator.training.saved_tensors import SavedTensors
from orchestrator.training.shards import Shards, shards_of
from orchestrator.training.update import DeviceUpdate, HostUpdate, Numbers, Update, Updated

if TYPE_CHECKING:
    from orchestrator.training.graph import LossGraph


@dataclass(frozen=True)
class StepReport:
    """What one step did, equal on every rank.

    Attributes:
        losses: named losses of the whole batch and their sum ``loss``.
        gradient_norm: global 2-norm before clipping.
        applied: whether the optimizer moved; false when anything was not finite.
        sound: whether weights and average were finite when the step began.
        overflow: the step was skipped because scaled fp16 gradients overflowed, which is the
            loss scaler's ordinary business.
        stop: some rank was asked to stop.
        learning_rate: that the optimizer was given, without the factors of its groups.
    """

    losses: dict[str, float]
    gradient_norm: float
    applied: bool
    sound: bool
    overflow: bool
    stop: bool
    learning_rate: float


class StepUnderWay(NamedTuple):
    """A step that was begun, and whose numbers may not be there yet.

    Attributes:
        serial: steps that were begun before it.
        names: of the losses.
        learning_rate: that the optimizer was given.
        numbers: of all losses by piece, then the wish to stop, the largest magnitude of the state,
            overflows that the loss scaler saw, the norm of the gradient, and whether the step was
            held.
    """

    serial: int
    names: list[str]
    learning_rate: float
    numbers: HostCopy


class _Buffers(SavedTensors):
    """The buffers of a model, and copies taken before a forward pass that may turn out bad."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(list(model.buffers()))
        # What is not saved is constant, and has no change to add up.
        kept = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        floating = [
            (live, saved)
            for live, saved in zip(self.live, self.saved, strict=True)
            if live.is_floating_point() and id(live) in kept
        ]
        self._floating = [live for live, _ in floating]
        self._floating_saved = [saved for _, saved in floating]

    @torch.no_grad()
    def changes(self) -> list[Tensor]:
        """How far floating-point buffers have moved; exactly zero for those that have not."""
        if not self._floating:
            return []
        return list(torch._foreach_sub(self._floating, self._floating_saved))

    @torch.no_grad()
    def apply(self, changes: list[Tensor], factor: float) -> None:
        """Let floating-point buffers be the saved ones plus ``factor`` times ``changes``."""
        if changes:
            moved = torch._foreach_add(self._floating_saved, changes, alpha=factor)
            torch._foreach_copy_(self._floating, moved)


class _Piece(NamedTuple):
    """Images that run forward and backward together.

    Attributes:
        first: place of the first of them in the rank's share of the batch.
        images: (n, 3, H, W).
        targets: of these images.
    """

    first: int
    images: Tensor
    targets: Targets


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
        rank: int | None = None,
        shards: Shards | None = None,
    ) -> None:
        """Make optimizer, scaler, average and gradient buckets.

        Args:
            model: on its device, in training mode.
            config: of the training.
            seed: of the run.
            accelerator: kind of device.
            precision: of forward and backward.
            collective: the ranks.
            rank: whose random numbers are drawn; None for this process's own.
            shards: how batches are cut; None for a run that begins with these ranks.
        """
        self.model = model
        self.config = config
        self.seed = seed
        self.accelerator = accelerator
        self.precision = precision
        self.collective = collective
        ahead = accelerator.kind != "cpu"
        fused = accelerator.kind == "gpu"
        self.optimizer = build_optimizer(model, config.optimizer, fused=fused)
        self.scaler = accelerator.scaler(precision, config.loss_scale)
        self.average = (
            WeightAverage(model, decay=config.ema.decay, warmup_steps=config.ema.warmup_steps)
            if config.ema is not None
            else None
        )
        self.shards = shards_of(config, collective.world) if shards is None else shards
        self.gradients = Gradients(
            list(model.parameters()), collective, ordered=self.shards.count is not None
        )
        self._rank = collective.rank if rank is None else rank
        self._buffers = _Buffers(model)
        if self.shards.count is not None:
            self._buffer_sum = OrderedSum(self._buffers.changes(), collective)
        #: What a step may only change if it is finite.
        self._finite_before = [*model.parameters(), *self._averaged()]
        #: No and yes, on the device before anybody is asked.
        self._wishes = torch.tensor([[0.0], [1.0]], device=collective.device).unbind()
        self._begun = 0
        #: What forward pass and losses were compiled to; None where they are not.
        self.graph: LossGraph | None = None
        if config.compile == "graph":
            # The compiler takes seconds to load, in every process that knows of steps.
            from orchestrator.training.graph import LossGraph

            own = 1 if self.shards.count is None else self.shards.count // collective.world
            self.graph = LossGraph(model, accelerator, pieces=config.accumulate * own)
        updated = Updated(
            optimizer=self.optimizer,
            scaler=self.scaler,
            gradients=self.gradients,
            clip_norm=config.clip_norm,
            average=self.average,
            buffers=self._buffers,
        )
        self._update: Update = DeviceUpdate(updated, fused=fused) if ahead else HostUpdate(updated)

    def run(self, batch: Batch, *, learning_rate: float, stop: bool) -> StepReport:
        """Do step ``batch.step`` with this rank's share of its images, and wait for its numbers."""
        return self.read(self.begin(batch, learning_rate=learning_rate, stop=stop))

    @property
    def ahead(self) -> int:
        """Steps that are begun before the numbers of an earlier one are read."""
        return self._update.ahead

    def begin(
        self, batch: Batch, *, learning_rate: float, stop: bool, inputs: Inputs | None = None
    ) -> StepUnderWay:
        """Have step ``batch.step`` done with this rank's share of its images.

        The host waits for the device nowhere in it. The step changes nothing, whatever its numbers,
        while an earlier one that was not applied has not been read.

        Args:
            batch: this rank's share of the step's images.
            learning_rate: of the step.
            stop: whether this rank was asked to stop.
            inputs: the batch on the device; None copies it now.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        pieces = self.backward(batch, inputs=inputs)
        self.reduce()
        self.scaler.unscale_(self.optimizer)
        norm = self.gradients.norm()
        names = sorted(pieces[0])
        rows = torch.stack([torch.stack([p[name].float() for name in names]) for p in pieces])
        peak = largest(self._finite_before)
        losses = self._by_shard(rows).flatten()
        shared = torch.cat([losses, self._wishes[stop], peak.reshape(1), self._overflows()])
        self.collective.sum_(shared)
        numbers = self._update.apply(Numbers(shared, norm), batch.step + 1)
        self._begun += 1
        return StepUnderWay(
            self._begun - 1,
            names,
            self.learning_rate,
            self.accelerator.to_host([numbers]),
        )

    def read(self, step: StepUnderWay) -> StepReport:
        """What a step did, waiting for it; steps are read in the order they were begun in.

        Where it was not applied, those begun after it changed nothing and have to be begun anew.
        """
        (numbers,) = step.numbers.wait()
        *values, stops, peak, overflows, norm, held = numbers.tolist()
        assert not held, "begun after a step that was not applied, and not begun anew"
        sound = math.isfinite(peak)
        finite_loss = sound and all(math.isfinite(value) for value in values)
        finite = finite_loss and math.isfinite(norm) and overflows == 0.0
        if finite:
            self._update.seen()
        else:
            self._update.take_back(self._begun - step.serial)
        named = {name: sum(values[i :: len(step.names)]) for i, name in enumerate(step.names)}
        return StepReport(
            losses={"loss": sum(values), **named},
            gradient_norm=norm,
            applied=finite,
            sound=sound,
            overflow=finite_loss and not finite and self.scaler.is_enabled(),
            stop=stops > 0,
            learning_rate=step.learning_rate,
        )

    def _overflows(self) -> Tensor:
        """(1,) above 0 where the loss scaler saw gradients overflow on this rank.

        A device that saturates shows it in no number of its own, and not on the other ranks.
        """
        if not self.scaler.is_enabled():
            return self._wishes[False]
        seen = self.scaler._found_inf_per_device(self.optimizer)
        return torch.stack([overflow.float().reshape(()) for overflow in seen.values()]).sum(
            0, keepdim=True
        )

    def _loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        return (self.graph or self.model.loss_terms)(images, targets)

    @property
    def learning_rate(self) -> float:
        """What the optimizer holds, taken from it, without the factors of its groups."""
        group = max(self.optimizer.param_groups, key=lambda group: float(group["lr_factor"]))
        factor = float(group["lr_factor"])
        return float(group["lr"]) / factor if factor else 0.0

    def _averaged(self) -> list[Tensor]:
        return [] if self.average is None else list(self.average.tensors.values())

    def damaged(self) -> list[str]:
        """Names of the tensors of the state that hold a NaN or an infinity."""
        # Constants are not saved, and may be infinite: the reach of an outermost level, say.
        saved = self.model.state_dict().keys()
        buffers = {name: b for name, b in self.model.named_buffers() if name in saved}
        named = {**dict(self.model.named_parameters()), **buffers}
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

    def backward(
        self,
        batch: Batch,
        *,
        divisors: Mapping[str, Tensor] | None = None,
        inputs: Inputs | None = None,
    ) -> list[dict[str, Tensor]]:
        """Run this rank's micro-batches forward and backward.

        A loss of the batch is the sum of what its pieces add up, over the sum of their divisors.
        The divisors are therefore added up over all pieces and ranks before the first backward
        pass. A rank with one piece runs it forward and then asks; one with several asks for their
        divisors alone first.

        Args:
            batch: this rank's share of the step's images.
            divisors: of the named losses over the whole batch; None adds them up here.
            inputs: the batch on the device; None copies it now.

        Returns:
            Named losses of each piece, as they add up to those of the whole batch.
        """
        pieces = self._pieces(batch, inputs)
        found: list[dict[str, Tensor]] = []
        self._buffers.save()
        if divisors is None and len(pieces) > 1:
            divisors = self.add_up(self._divisors(batch, pieces))
        # Without virtual shards a rank's share is one.
        length = self.config.accumulate
        for number, piece in enumerate(pieces):
            if number % length == 0 and number > 0:
                # Every shard starts from what the step found, as it does alone on its rank.
                self._buffers.restore()
            with self._drawing(batch, piece), self.accelerator.autocast(self.precision):
                terms = self._loss_terms(piece.images, piece.targets)
            if divisors is None:
                divisors = self.add_up([_divisors_of(terms)])
            losses = {name: term.over(divisors[name]) for name, term in terms.items()}
            total = torch.stack(list(losses.values())).sum()
            if number % length == 0:
                self.gradients.zero()
            ends = number % length == length - 1
            if ends:
                self.gradients.expect_last(last_shard=number == len(pieces) - 1)
            self.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
            found.append({name: value.detach() for name, value in losses.items()})
            if ends:
                self.gradients.end_shard()
                if self.shards.count is not None:
                    self._buffer_sum.add(self._buffers.changes())
        return found

    def divisors(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Divisors of the named losses of each of this rank's pieces; nothing else changes."""
        return self._divisors(batch, self._pieces(batch, None))

    def _divisors(self, batch: Batch, pieces: Sequence[_Piece]) -> list[dict[str, Tensor]]:
        found = []
        self._buffers.save()
        for piece in pieces:
            with self._drawing(batch, piece), self.accelerator.autocast(self.precision):
                found.append(self.model.loss_divisors(piece.images, piece.targets))
            # Some detectors have to run forward for it, through layers that keep statistics.
            self._buffers.restore()
        return found

    def add_up(self, pieces: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Divisors over all pieces of all ranks, the same bits on each.

        Counts are exact in float32 up to 16 million, in whatever order they are added; with virtual
        shards other divisors have one order, too.
        """
        names = sorted(pieces[0])
        table = torch.stack([torch.stack([p[name].float() for name in names]) for p in pieces])
        table = self._by_shard(table)
        self.collective.sum_(table)
        return dict(zip(names, table.sum(0).unbind(), strict=True))

    def _by_shard(self, rows: Tensor) -> Tensor:
        """A row for each piece of the batch, zeros but for this rank's; one row without shards."""
        if self.shards.count is None:
            return rows.sum(0, keepdim=True)
        # Adding zeros is exact, so that a sum over ranks has the same bits for any number of them.
        table = rows.new_zeros(self.shards.count * self.config.accumulate, rows.shape[1])
        first = self.collective.rank * len(rows)
        table[first : first + len(rows)] = rows
        return table

    def _pieces(self, batch: Batch, inputs: Inputs | None) -> list[_Piece]:
        """This rank's share of a batch as it is learnt from: micro-batches, shard after shard."""
        images, targets = inputs or inputs_of(batch, self.collective.device)
        count = self.config.accumulate
        if self.shards.count is not None:
            count *= len(batch) // (self.config.batch_size // self.shards.count)
        size = len(batch) // count
        return [
            _Piece(rows.start, images[rows], Targets(*(column[rows] for column in targets)))
            for rows in (slice(piece * size, (piece + 1) * size) for piece in range(count))
        ]

    @contextmanager
    def _drawing(self, batch: Batch, piece: _Piece) -> Iterator[None]:
        """Random numbers are those of the step and of the image's place in the whole batch."""
        torch.manual_seed(_device_seed(self.seed, batch.step))
        first = self._rank * len(batch) + piece.first
        with piece_of_batch(first, self.config.batch_size):
            yield

    def reduce(self) -> None:
        """Make gradients those of the whole batch, on every rank.

        With virtual shards batch-norm statistics, too, become the mean of what the shards make of
        those before the step; each rank keeps its own without.
        """
        self.gradients.finish()
        if self.shards.count is not None:
            changes = self._buffers.changes()
            self._buffer_sum.finish(changes)
            self._buffers.apply(changes, 1.0 / self.shards.count)


@torch.no_grad()
def largest(tensors: Iterable[Tensor]) -> Tensor:
    """Largest magnitude in the floating-point tensors, a float32 scalar; not finite if any is."""
    floating = [t for t in tensors if t.is_floating_point() and t.numel()]
    norms = torch._foreach_norm(floating, math.inf)
    # Step counters of optimizers stay on the host.
    return torch.stack([norm.float().to(norms[0].device) for norm in norms]).max()


def _divisors_of(terms: Mapping[str, LossTerm]) -> dict[str, Tensor]:
    return {name: term.divisor.detach() for name, term in terms.items()}


def _device_seed(seed: int, step: int) -> int:
    """Seed of the device generator for the forward passes of a step: a pure function."""
    mixed = seed
    # The zeros are of the first worker and its first piece, which once had seeds of their own.
    for part in (step, 0, 0):
        # SplitMix64 finaliser (Steele et al. 2014): neighbouring inputs give unrelated seeds.
        mixed = (mixed ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1
