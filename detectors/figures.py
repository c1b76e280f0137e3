"""Figures of detectors: what can be counted, and what each one's ``published.py`` lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """What can be counted of a detector.

    Attributes:
        parameters: learnable values, those of a shared module once, frozen ones too.
        trainable: those of them that an optimizer moves.
        parameter_tensors: tensors that hold :attr:`parameters`.
        values: parameters and running statistics, batch counters left out.
        value_tensors: tensors that hold :attr:`values`.
        state_entries: names in the state dict; tensors that are shared are listed under each.
        multiply_adds: of the convolutions and matrix products of one image's forward pass.
        priors: boxes at fixed places that offsets refer to; 0 for a detector without any.
        candidates: boxes that post-processing gets for each image.
        height: of the input, pixels.
        width: of the input, pixels.
    """

    parameters: int
    trainable: int
    parameter_tensors: int
    values: int
    value_tensors: int
    state_entries: int
    multiply_adds: int
    priors: int
    candidates: int
    height: int
    width: int


class Figure(NamedTuple):
    """A number that somebody published.

    Attributes:
        name: of the field of :class:`Measured` it is about.
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
