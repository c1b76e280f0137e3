"""A run that is to be longer than it was to be when it began.

Everything but the rate of a schedule with a horizon is a function of the step. So a run that goes
on for longer is, bit for bit, what it would have been with as many epochs from the start, unless
its rate was to come to an end where the run did; then somebody has to say what it does next.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast

from pydantic import TypeAdapter

from orchestrator.config.scalars import Json
from orchestrator.config.schema import Schedule
from orchestrator.training.schedules import Continuation, Extension, ends_with_run

#: Key of how the run was made longer, in ``run.json``: pairs of epochs and continuation.
EXTENSIONS = "extensions"
_SCHEDULE: TypeAdapter[Schedule] = TypeAdapter(Schedule)


class Extended(NamedTuple):
    """What it means for a run that ``train.epochs`` may have grown.

    Attributes:
        before: the configuration that is recorded, with the present number of epochs where the
            lines below say all about it.
        extensions: that the run then has.
        refused, notes: about the number of epochs.
    """

    before: Mapping[str, Json]
    extensions: tuple[Extension, ...]
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def extended_run(
    before: Mapping[str, Json],
    recorded: Iterable[tuple[int, Continuation]],
    tree: Mapping[str, Json],
) -> Extended:
    """Compare the length of a run with what it was to be.

    Args:
        before: its configuration, resolved, as recorded.
        recorded: under :data:`EXTENSIONS`.
        tree: its configuration now.
    """
    extensions = tuple(Extension(*one) for one in recorded)
    old, new = _epochs(before), _epochs(tree)
    if old is None or new is None or old >= new:
        kept = tuple(one for one in extensions if new is None or one.epochs < new)
        if old is None or new is None or old == new:
            return Extended(before, kept)
        line = (
            f"train.epochs: {old} there, {new} now: to end sooner, with the rates of {old} epochs, "
            "leave it as it was and set train.max_steps"
        )
        return Extended(_of_epochs(before, new), kept, refused=(line,))
    train: Any = tree["train"]
    # In JSON's mode, which takes the lists of a tree for tuples.
    schedule = _SCHEDULE.validate_json(json.dumps(train.get("schedule") or {"name": "constant"}))
    grown = f"train.epochs: {old} there, {new} now"
    adjusted = _of_epochs(before, new)
    if not ends_with_run(schedule):
        return Extended(adjusted, extensions, notes=(f"{grown}; the rate of no step changes",))
    how: Continuation | None = train.get("continue")
    if how is None:
        line = (
            f"{grown}, and the rate of {schedule.name} ends at epoch {old}: say what it does from "
            "there on by train.continue=stretch, restart or hold"
        )
        return Extended(adjusted, extensions, refused=(line,))
    note = f"{grown}; the rate from epoch {old} on by train.continue: {how}"
    return Extended(adjusted, (*extensions, Extension(old, how)), notes=(note,))


def _of_epochs(tree: Mapping[str, Json], epochs: int) -> dict[str, Json]:
    section = cast("Mapping[str, Json]", tree["train"])
    return {**tree, "train": {**section, "epochs": epochs}}


def _epochs(tree: Mapping[str, Json]) -> int | None:
    train = tree.get("train")
    epochs = train.get("epochs") if isinstance(train, dict) else None
    return epochs if isinstance(epochs, int) else None
