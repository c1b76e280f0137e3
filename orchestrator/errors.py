"""Errors a user can meet, each with the exit code its class stands for.

A message says what was found, where, what is allowed, the nearest match and one next step.
Everything else that escapes is a bug and exits with 70.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.credentials import mask

if TYPE_CHECKING:
    from rich.console import Console

#: What moves the cursor of a terminal, colours it, or turns the order of letters around.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class OrchestratorError(Exception):
    """Base of every error raised on purpose; exits with 70 unless a subclass says otherwise.

    Keys and passwords in a message are masked when it is made, so they reach no log either.
    """

    exit_code = 70
    #: Whether a command ends without what libraries have registered for the end of its process.
    ends_at_once = False

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(mask(each) if isinstance(each, str) else each for each in arguments))


class ConfigError(OrchestratorError):
    """The experiment file, an override or the requested resources are not valid."""

    exit_code = 64


class DataError(OrchestratorError):
    """A data set is missing, malformed or does not fit the label map."""

    exit_code = 65


class StorageError(OrchestratorError):
    """A run folder or checkpoint cannot be read, written or trusted."""

    exit_code = 71


class PreemptedError(OrchestratorError):
    """The run was asked to stop, committed its last finished step and can be started again."""

    exit_code = 75


class SecurityError(OrchestratorError):
    """An input tried something it must not: a path outside its root, a pickle, an open port."""

    exit_code = 77


def error_with(exit_code: int) -> type[OrchestratorError]:
    """The class of the errors that a process has ended with; the base for what is no refusal."""
    kinds = (ConfigError, DataError, StorageError, PreemptedError, SecurityError)
    return next((one for one in kinds if one.exit_code == exit_code), OrchestratorError)


def printable(text: str) -> str:
    """Foreign text as a terminal may be given it: control characters as escapes, all else as it is.

    A name may come from anyone's file, and a terminal takes escape sequences for commands.
    """
    shown = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    # File systems have names that are no text.
    return shown.encode("utf-8", "backslashreplace").decode("utf-8")


def say(console: Console, text: str) -> None:
    """Print a plain line: no colours guessed, no brackets taken for markup."""
    console.print(printable(text), highlight=False, markup=False)


def first_line(error: BaseException | None) -> str:
    """What an error begins with, which may go on for pages; its class where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to ``word``, or None when none is close enough to be a likely typo."""
    found = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, candidates: Iterable[str], like: str = "{!r}") -> str:
    """The end of a message that names the candidate closest to ``word``; empty without one.

    Args:
        word: that is none of them.
        candidates: what it may have been meant for.
        like: how the candidate is shown.
    """
    guess = nearest(word, candidates)
    return "" if guess is None else f"; did you mean {like.format(guess)}?"


def nearest_path(path: Path) -> str:
    """Which neighbour of a path that is not there was likely meant, as the end of a sentence."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return ""
    guess = nearest(path.name, siblings)
    return f"; did you mean {path.parent / guess}?" if guess else ""
