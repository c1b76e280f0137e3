"""What the models share: strict types, unknown keys refused, names as the formats write them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel, to_pascal

Text: TypeAlias = Annotated[str, Field(min_length=1)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=1 << 32)]
Port: TypeAlias = Annotated[int, Field(ge=1, le=65535)]
#: A quantity of Kubernetes: a number, or text with a unit such as ``500m`` or ``8Gi``.
Quantity: TypeAlias = int | float | str


class Snake(BaseModel):
    """A section whose keys are ``written_so``, as in launcher and compose files."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Camel(Snake):
    """A section whose keys are ``writtenSo``, as in Kubernetes and GCP."""

    model_config = ConfigDict(alias_generator=to_camel)


class Pascal(Snake):
    """A section whose keys are ``WrittenSo``, as in EC2."""

    model_config = ConfigDict(alias_generator=to_pascal)
