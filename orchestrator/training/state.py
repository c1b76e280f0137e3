"""Between live training objects and the plain :class:`TrainState` that a commit holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from orchestrator.checkpoints.codec import (
    Tensors,
    TrainState,
    optimizer_from_flat,
    optimizer_to_flat,
)
from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.training.collective import Collective
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


def shared(load: Callable[[], TrainState], collective: Collective) -> TrainState:
    """A state that rank 0 reads and hands to all; what goes wrong there is raised on all.

    Args:
        load: reads it; called on rank 0 alone.
        collective: the ranks.

    Raises:
        OrchestratorError: whatever ``load`` raised.
    """
    if collective.world == 1:
        return load()
    state: TrainState | None = None
    trouble: OrchestratorError | None = None
    if collective.is_main:
        try:
            state = load()
        except OrchestratorError as error:
            trouble = error
    trouble = collective.from_main(trouble)
    if trouble is not None:
        raise trouble
    layout = collective.from_main(None if state is None else _layout(state))
    assert layout is not None, "made on rank 0"
    if state is None:
        state = _unfilled(layout)
    for tensors in state.groups().values():
        collective.copy_from_main_(list(tensors.values()))
    return state


class _Layout(NamedTuple):
    """A state but for what its tensors hold.

    Attributes:
        step, scalars: of the state.
        groups: shape, strides and type of each tensor, by group and name.
    """

    step: int
    scalars: dict[str, Any]
    groups: dict[str, dict[str, tuple[torch.Size, tuple[int, ...], torch.dtype]]]


def _layout(state: TrainState) -> _Layout:
    groups = {
        group: {name: (t.shape, t.stride(), t.dtype) for name, t in tensors.items()}
        for group, tensors in state.groups().items()
    }
    return _Layout(state.step, state.scalars, groups)


def _unfilled(layout: _Layout) -> TrainState:
    groups = {
        group: {
            name: torch.empty_strided(shape, stride, dtype=dtype)
            for name, (shape, stride, dtype) in tensors.items()
        }
        for group, tensors in layout.groups.items()
    }
    return TrainState(
        layout.step, groups["model"], groups["optimizer"], groups.get("ema"), layout.scalars
    )


@torch.no_grad()
def restore(state: TrainState, stepper: Stepper) -> dict[str, Any]:
    """Put a committed state back into live objects; returns its scalars.

    An average that the state does not have yet begins from its weights, and a loss scale that it
    does not have from its own beginning.

    Raises:
        ConfigError: the state is of another network, which only a forced start meets.
        StorageError: it is of another optimizer.
    """
    trouble = differing(state.model, stepper.model.state_dict())
    if trouble is not None:
        raise ConfigError(
            f"the last checkpoint is of another network: {trouble}. Next: undo the changes of "
            "`detector`, or give this experiment another name (name=...) and begin with those "
            "weights by train.init_from"
        )
    stepper.model.load_state_dict(state.model, strict=True)
    named = list(stepper.model.named_parameters())
    optimizer_from_flat(stepper.optimizer, named, state.optimizer)
    if stepper.average is not None:
        stepper.average.load(state.model if state.ema is None else state.ema)
    if state.scalars["scaler"]:
        stepper.scaler.load_state_dict(state.scalars["scaler"])
    return state.scalars


def differing(theirs: Tensors, ours: Tensors) -> str | None:
    """How the tensors of a state differ from those of a model; None where all fit."""
    found = sorted(
        name
        for name in {*theirs, *ours}
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape
    )
    return f"{len(found)} of {len(ours)} tensors differ, {found[0]} first" if found else None
