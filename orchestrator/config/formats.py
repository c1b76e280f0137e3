"""Annotation formats by name: this program's, and those of other installed packages."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeAlias

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from detectors.plugins import entry_points
from orchestrator.layouts.layout import FORMATS

#: Group of the entry points that name readers of other formats.
READERS: Final = "orchestrator.readers"


class _OneOfTheFormats:
    """Annotation of a text that names a format; packages are looked for when it is first used."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        names = {point.name for point in entry_points(READERS)}
        return core_schema.literal_schema([*FORMATS, *sorted(names - set(FORMATS))])


#: Type of ``data.format``.
Format: TypeAlias = Annotated[str, _OneOfTheFormats()]
