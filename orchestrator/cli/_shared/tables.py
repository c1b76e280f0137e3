"""Tables for people, of which nothing is cut away."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Column


def columns(*names: str) -> list[Column]:
    """Columns that go on in the next line where they are too narrow.

    Rich would end a long name in dots, and two classes or runs would look the same.
    """
    from rich.markup import escape
    from rich.table import Column

    from orchestrator.errors import printable

    return [Column(escape(printable(name)), overflow="fold") for name in names]
