"""Repeats a step that was not finite, from its evidence alone, and looks for what broke first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from detectors.base import Detector
from orchestrator.accelerators import Accelerator
from orchestrator.data.batch import Batch
from orchestrator.training import nonfinite_dump
from orchestrator.training.collective import Collective
from orchestrator.training.session import initial_model
from orchestrator.training.shards import Shards
from orchestrator.training.state import restore
from orchestrator.training.stepper import Stepper, largest

#: Names listed of each kind of trouble; the rest is counted.
_NAMED = 5


@dataclass(frozen=True)
class Replayed:
    """What a repeated step showed.

    Attributes:
        folder: of the evidence.
        step: its number, from 0.
        weights: tensors of the state that were not finite before the step.
        losses: by rank, what it adds to the named losses of the batch.
        modules: by rank, the first module that made something not finite out of something finite,
            or None.
        images: data-set ids of images whose boxes are not finite.
        gradients: parameters whose gradient is not finite, on any rank.
    """

    folder: Path
    step: int
    weights: list[str]
    losses: list[dict[str, float]]
    modules: list[str | None]
    images: list[int]
    gradients: list[str]

    @property
    def reproduced(self) -> bool:
        """Whether anything was not finite again."""
        losses = (value for named in self.losses for value in named.values())
        broken = not all(math.isfinite(value) for value in losses)
        return broken or bool(self.weights or self.gradients)

    def lines(self) -> Iterator[str]:
        """The story, for people."""
        yield f"step {self.step}, from {self.folder}"
        for rank, (named, module) in enumerate(zip(self.losses, self.modules, strict=True)):
            numbers = ", ".join(f"{name} {value:g}" for name, value in named.items())
            yield f"  rank {rank}: {numbers}"
            if module is not None:
                yield f"  rank {rank}: first not finite: the output of {module}"
        for what, names in (
            ("weights and other state, before the step", self.weights),
            ("boxes of images", [str(image) for image in self.images]),
            ("gradients", self.gradients),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                yield f"  not finite: {what}: {', '.join(names[:_NAMED])}{more}"
        yield (
            "reproduced: the step is not finite again"
            if self.reproduced
            else "not reproduced: everything is finite here, so look at the machine it ran on "
            "(memory, device, driver) rather than at the data"
        )


def replay(run_dir: Path, step: int | None, *, accelerator: Accelerator) -> Replayed:
    """Repeat the forward and backward passes of a kept step, rank after rank.

    Args:
        run_dir: the run folder.
        step: as the log numbers it, from 0; None for the newest one kept.
        accelerator: device to repeat it on.

    Raises:
        StorageError: there is no evidence of such a step.
        ConfigError: the device cannot do the precision the step was made in, or has an operator
            without a deterministic kernel.
    """
    found = nonfinite_dump.read(run_dir, step)
    experiment = found.experiment
    accelerator.set_determinism(experiment.train.deterministic, found.report["threads"])
    device = accelerator.device()
    losses, modules = [], []
    weights: list[str] = []
    gradients: dict[str, None] = {}

    # Kept steps of before say it in their experiment.
    shards = found.report.get("virtual_shards", experiment.train.virtual_shards)
    shards = None if shards == "auto" else shards

    def stepper_of(rank: int) -> Stepper:
        stepper = Stepper(
            initial_model(experiment, len(found.classes), accelerator, device),
            experiment.train,
            seed=experiment.seed,
            accelerator=accelerator,
            precision=accelerator.resolve_precision(found.report["precision"]),
            collective=Collective(device),
            rank=rank,
            shards=Shards(shards, found.report["world"]),
        )
        restore(found.state, stepper)
        return stepper

    shares: list[dict[str, Tensor]] = []
    for rank, batch in enumerate(found.batches):
        shares += stepper_of(rank).divisors(batch)
    for rank, batch in enumerate(found.batches):
        stepper = stepper_of(rank)
        model = stepper.model
        weights = stepper.damaged()
        with _first_broken(model) as broken, accelerator.naming_operators():
            pieces = stepper.backward(batch, divisors=stepper.add_up(shares))
        stepper.reduce()
        losses.append({n: sum(piece[n].item() for piece in pieces) for n in sorted(pieces[0])})
        modules.append(broken[0] if broken else None)
        stepper.scaler.unscale_(stepper.optimizer)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not _finite([parameter.grad]):
                gradients[name] = None
    return Replayed(
        folder=found.path,
        step=int(found.report["step"]),
        weights=weights,
        losses=losses,
        modules=modules,
        images=[image for batch in found.batches for image in _images_with_bad_boxes(batch)],
        gradients=list(gradients),
    )


def _finite(tensors: list[Tensor]) -> bool:
    floating = [t for t in tensors if t.is_floating_point() and t.numel()]
    return not floating or math.isfinite(largest(floating).item())


def _images_with_bad_boxes(batch: Batch) -> list[int]:
    peaks = torch.from_numpy(batch.boxes).abs().amax(dim=(1, 2))
    return [int(batch.image_ids[i]) for i in (~peaks.isfinite()).nonzero().flatten().tolist()]


@contextmanager
def _first_broken(model: Detector) -> Iterator[list[str]]:
    """Names of modules, in the order they ran, that turned something finite into what is not."""
    broken: list[str] = []

    def watch(name: str, module: nn.Module) -> None:
        def look(module: nn.Module, inputs: object, outputs: object) -> None:
            if _finite(_tensors(inputs)) and not _finite(_tensors(outputs)):
                broken.append(f"{name} ({type(module).__name__})")

        handles.append(module.register_forward_hook(look))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            watch(name, module)
    try:
        yield broken
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
