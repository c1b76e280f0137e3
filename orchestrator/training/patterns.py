"""Shell-style patterns of parameter and layer names, and what to say when one fits nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from orchestrator.errors import did_you_mean


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether ``name`` is what one of ``patterns`` describes; ``*`` stands for dots too."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def nothing_fits(patterns: Sequence[str], names: Sequence[str], what: str) -> str:
    """Message for patterns that none of ``names`` fits, with the nearest that would.

    Args:
        patterns: as configured.
        names: that were looked at.
        what: they are names of, in the plural.
    """
    starts = {".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)}
    hint = did_you_mean(patterns[0].strip("*."), starts, like="'{}*'")
    first = f", the first of which is '{names[0]}'" if names else ""
    wanted = " or ".join(f"'{pattern}'" for pattern in patterns)
    return f"{wanted} fits none of the detector's {len(names)} {what}{first}{hint}"
