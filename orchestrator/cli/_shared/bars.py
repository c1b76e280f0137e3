"""Bars on a terminal for what takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def bars(title: str = "{task.description}") -> Progress:
    """Bars on standard error, gone at the end; nothing, not even a line's end, in a file.

    Args:
        title: of each bar, in which rich fills in the task.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True, soft_wrap=True)
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
