"""Between live training objects and the plain :class:`TrainState` that a commit holds."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.checkpoints.codec import (
    Tensors,
    TrainState,
    optimizer_from_flat,
    optimizer_to_flat,
)
from orchestrator.errors import ConfigError
from orchestrator.training.stepper import Stepper


def capture(stepper: Stepper, *, step: int, scalars: dict[str, Any]) -> TrainState:
    """The whole state after ``step`` steps; tensors are the live ones, not copies."""
    named = list(stepper.model.named_parameters())
    average = stepper.average
    return TrainState(
        step=step,
        model=dict(stepper.model.state_dict()),
        optimizer=optimizer_to_flat(stepper.optimizer, named),
        ema=None if average is None else average.tensors,
        scalars={**scalars, "scaler": stepper.scaler.state_dict()},
    )


@torch.no_grad()
def restore(state: TrainState, stepper: Stepper) -> dict[str, Any]:
    """Put a committed state back into live objects; returns its scalars.

    An average that the state does not have yet begins from its weights.

    Raises:
        ConfigError: the state is of another network, which only a forced start meets.
        StorageError: it is of another optimizer.
    """
    _require_fitting(state.model, stepper.model.state_dict())
    stepper.model.load_state_dict(state.model, strict=True)
    named = list(stepper.model.named_parameters())
    optimizer_from_flat(stepper.optimizer, named, state.optimizer)
    if stepper.average is not None:
        stepper.average.load(state.model if state.ema is None else state.ema)
    stepper.scaler.load_state_dict(state.scalars["scaler"])
    return state.scalars


def _require_fitting(theirs: Tensors, ours: Tensors) -> None:
    differing = sorted(
        name
        for name in {*theirs, *ours}
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )
    if differing:
        raise ConfigError(
            f"the last checkpoint is of another network: {len(differing)} of {len(ours)} tensors "
            f"differ, {differing[0]} first. Next: undo the changes of `detector`, or give this "
            "experiment another name (name=...) and begin with those weights by train.init_from"
        )
