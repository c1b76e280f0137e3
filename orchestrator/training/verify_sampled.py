"""Seeing that what a sweep set has arrived where it acts, and not only in a configuration.

The values come from the plan of the sweep by a way of their own; they are compared with the live
optimizer after its first step, and with the schedule and the experiment that the run works by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from orchestrator.config.resolve import flatten
from orchestrator.config.scalars import Json
from orchestrator.errors import OrchestratorError
from orchestrator.training.job import TrainingJob
from orchestrator.training.schedules import LearningRate

_OPTIMIZER = "train.optimizer."
#: Settings that torch keeps in every parameter group under the same name.
_PLAIN = ("momentum", "nesterov", "eps")


class SampledValueError(OrchestratorError):
    """A value that a sweep chose is not what the run trains with."""


def check_sampled(
    job: TrainingJob, optimizer: torch.optim.Optimizer, rate: LearningRate, step: int
) -> None:
    """Compare a trial's values with the live objects, right after an optimizer step.

    Args:
        job: with what the sweep chose.
        optimizer: the live one.
        rate: what it was given its learning rates by.
        step: number of the step that was done last, from 0.

    Raises:
        SampledValueError: one of them did not arrive.
    """
    tree: dict[str, Json] = job.experiment.model_dump(mode="json", by_alias=True)
    effective = flatten(tree)
    chosen = {
        path: value
        for key, section in job.sampled.items()
        for path, value in flatten({key: section}).items()
    }
    for key, value in chosen.items():
        if not _equal(effective.get(key), value):
            raise _lost(key, value, effective.get(key), "the experiment of the workers")
    scaled = job.experiment.train.scaled
    for key, wanted, found in _live(chosen, optimizer, rate, step, scaled):
        if not _equal(found, wanted):
            raise _lost(key, wanted, found, "the live optimizer")


def _live(
    chosen: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    rate: LearningRate,
    step: int,
    scaled: Callable[[float], float],
) -> Iterator[tuple[str, Any, Any]]:
    """Key, value wanted and value found, of everything an optimizer can be asked about."""
    groups = optimizer.param_groups
    kind = chosen.get(f"{_OPTIMIZER}name")
    if kind is not None:
        yield f"{_OPTIMIZER}name", kind, type(optimizer).__name__.lower()
    if f"{_OPTIMIZER}lr" in chosen:
        yield f"{_OPTIMIZER}lr", scaled(chosen[f"{_OPTIMIZER}lr"]), rate.base
    for key, value in chosen.items():
        if key.startswith("train.schedule.") and key.count(".") == 2:
            name = key.rpartition(".")[2]
            yield key, value, getattr(rate.schedule, name)
    if any(key.startswith(("train.optimizer.lr", "train.schedule")) for key in chosen):
        for group in groups:
            yield "train.optimizer.lr", rate(step) * group["lr_factor"], float(group["lr"])
    for name in _PLAIN:
        if f"{_OPTIMIZER}{name}" in chosen:
            for group in groups:
                yield f"{_OPTIMIZER}{name}", chosen[f"{_OPTIMIZER}{name}"], group[name]
    for index in range(2):
        key = f"{_OPTIMIZER}betas.{index}"
        if key in chosen:
            for group in groups:
                yield key, chosen[key], group["betas"][index]
    decay = chosen.get(f"{_OPTIMIZER}weight_decay")
    if decay is not None:
        # Groups may have a decay of their own; weights that have none of it say it arrived.
        held = [group["weight_decay"] for group in groups]
        arrived = any(_equal(found, decay) for found in held)
        yield f"{_OPTIMIZER}weight_decay", decay, decay if arrived else held[0]


def _equal(found: object, wanted: object) -> bool:
    numbers = [
        float(value)
        for value in (found, wanted)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return math.isclose(*numbers, rel_tol=1e-12) if len(numbers) == 2 else found == wanted


def _lost(key: str, wanted: object, found: object, where: str) -> SampledValueError:
    return SampledValueError(
        f"{key}: the sweep chose {wanted!r}, but {where} has {found!r}, so this trial would not "
        "test what it is said to test. The sweep is stopped. Next: report this as a bug, with the "
        "experiment file"
    )
