"""What a run is told when it is one of many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.config.scalars import Json


@dataclass(frozen=True)
class TrialContext:
    """A run as part of a sweep; nothing of it changes what the run computes.

    Attributes:
        parent: folder of the sweep, whose run in MLflow holds this one.
        tags: of the run in MLflow.
        artifacts: of the run in MLflow, by the path they get there.
        sampled: values that the sweep set, by dotted key.
        judged_epochs: after these the run waits to be told whether it goes on.
    """

    parent: str
    tags: Mapping[str, str]
    artifacts: Mapping[str, str]
    sampled: Mapping[str, Json] = field(default_factory=dict)
    judged_epochs: tuple[int, ...] = ()
