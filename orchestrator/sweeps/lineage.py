"""What a member of a population has been: the stretches of training behind its weights.

A member that was replaced goes on from the commit of another one, so its weights were not made by
its own values alone. The journal says whose they were and with which values; trained one after the
other, these stretches make the same weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.sweeps.journal import Entry
from orchestrator.sweeps.space import Values


@dataclass(frozen=True)
class Stretch:
    """Steps that were trained by one member with the same values.

    Attributes:
        member: its number.
        end: steps behind it, counted from the start of training.
        values: that it trained with.
    """

    member: int
    end: int
    values: Values


def lineage(entries: Sequence[Entry], member: int, steps: int) -> list[Stretch]:
    """The stretches behind a member's weights, in order; a single one if it never was replaced.

    Args:
        entries: of the sweep's journal.
        member: number of the trial.
        steps: behind the weights.
    """
    begun = {e.content["trial"]: e.content["values"] for e in entries if e.kind == "trial"}
    cloned = [entry.content for entry in entries if entry.kind == "cloned"]
    found: list[Stretch] = []
    while True:
        # A clone of the last step is not behind the weights of that step: it came after them.
        before = [c for c in cloned if c["trial"] == member and c["step"] < steps]
        newest = max(before, key=lambda clone: int(clone["step"]), default=None)
        values = begun[member] if newest is None else newest["values"]
        found.append(Stretch(member, steps, dict(values)))
        if newest is None:
            return found[::-1]
        member, steps = newest["donor"], newest["step"]
