"""Where a value was given, and what is wrong with it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator.config.scalars import shorten
from orchestrator.errors import ConfigError

#: Keys and list indices from the top of the file.
KeyPath: TypeAlias = tuple[str | int, ...]

_SHOWN = 100


@dataclass(frozen=True)
class Place:
    """A position in a file, or an override.

    Attributes:
        source: file as the user named it, the override, or where the program found the value.
        line: counted from 1; None outside a file.
        column: counted from 1, in characters; None outside a file.
    """

    source: str
    line: int | None = None
    column: int | None = None

    @classmethod
    def of_override(cls, text: str) -> Place:
        """The place of a value given as ``key.path=value``."""
        return cls(f"override '{shorten(text)}'")

    @property
    def is_override(self) -> bool:
        """Whether the value was given as ``key.path=value``."""
        return self.source.startswith("override '")

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Problem:
    """One thing that has to be corrected.

    Attributes:
        place: where.
        path: of the key; empty where the text itself is at fault.
        message: what was found, what is allowed, and the nearest match if there is one.
    """

    place: Place
    path: KeyPath
    message: str

    def __str__(self) -> str:
        key = dotted(self.path)
        if key and not self.place.source.startswith(f"override '{key}="):
            return f"{self.place} {key}: {self.message}"
        column = "" if self.place.column is None else f":{self.place.column}"
        return f"{self.place}{column}: {self.message}"


def dotted(path: KeyPath) -> str:
    """``train.optimizer.betas.0``, as an override would name it."""
    return ".".join(shorten(str(part)) for part in path)


def error_of(
    problems: Iterable[Problem], source: str, *, check: Sequence[str] | None = None
) -> ConfigError:
    """One error that lists all ``problems`` in the order of the file, overrides last.

    Args:
        problems: at least one.
        source: file as the user named it.
        check: what ``config show`` takes to see it all once more; ``source`` alone by default.
    """
    found = sorted(
        set(problems),
        key=lambda problem: (
            problem.place.is_override,
            problem.place.line or 0,
            problem.place.column or 0,
            dotted(problem.path),
            problem.message,
        ),
    )
    count = "1 problem" if len(found) == 1 else f"{len(found)} problems"
    lines = [f"{source}: {count}", *map(str, found[:_SHOWN])]
    if len(found) > _SHOWN:
        lines.append(f"… and {len(found) - _SHOWN} more")
    same = " and the same overrides" if any(one.place.is_override for one in found) else ""
    command = shlex.join(["orchestrator", "config", "show", *(check or [source])])
    lines.append(f"Correct this and check it with: {command}{same}")
    return ConfigError("\n".join(lines))
