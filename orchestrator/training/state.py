"""Between live training objects and the plain :class:`TrainState` that a commit holds."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.checkpoints.codec import TrainState, optimizer_from_flat, optimizer_to_flat
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
    """Put a committed state back into live objects; returns its scalars."""
    stepper.model.load_state_dict(state.model, strict=True)
    named = list(stepper.model.named_parameters())
    optimizer_from_flat(stepper.optimizer, named, state.optimizer)
    if stepper.average is not None and state.ema is not None:
        stepper.average.load(state.ema)
    stepper.scaler.load_state_dict(state.scalars["scaler"])
    return state.scalars
