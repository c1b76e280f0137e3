"""Published figures of detectors, as each detector's own ``published.py`` lists them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """A number that somebody published.

    Attributes:
        name: of the field of :class:`~detectors.measure.Measured` it is about.
        value: as published.
        source: where.
        within: how far the built value may be off, half a unit of the last published digit.
    """

    name: str
    value: float
    source: str
    within: float = 0.0


@dataclass(frozen=True)
class Published:
    """A network whose figures are known.

    Attributes:
        variant: of the detector.
        num_classes: foreground classes it was counted with.
        figures: what is known of it.
        fields: of the configuration, other than those of the variant.
    """

    variant: str
    num_classes: int
    figures: tuple[Figure, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """For people: variant, classes and what differs."""
        extra = "".join(f", {key} {value}" for key, value in self.fields.items())
        noun = "class" if self.num_classes == 1 else "classes"
        return f"{self.variant}, {self.num_classes} {noun}{extra}"
