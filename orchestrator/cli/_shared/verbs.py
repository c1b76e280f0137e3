"""Tables of verbs, and choosing from them: the console script's own, and those of a verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from orchestrator.errors import ConfigError, nearest


class Verb(NamedTuple):
    """A subcommand.

    Attributes:
        main: takes the arguments after the verb and returns the exit code. It imports what it needs
            itself, so that no verb waits for the imports of another.
        summary: one line for the help.
    """

    main: Callable[[Sequence[str]], int]
    summary: str


def dispatch(prog: str, verbs: Mapping[str, Verb], arguments: Sequence[str]) -> int:
    """Call the verb that ``arguments`` begins with and return its exit code.

    Args:
        prog: what was typed so far, such as ``orchestrator convert``.
        verbs: by name.
        arguments: the verb and what belongs to it.

    Raises:
        ConfigError: no verb, or one that is not in the table.
    """
    usage = _usage(prog, verbs)
    if not arguments:
        raise ConfigError(usage)
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(usage)
        return 0
    verb = verbs.get(name)
    if verb is None:
        guess = nearest(name, verbs)
        hint = f"; did you mean '{guess}'?" if guess else ""
        raise ConfigError(f"{prog}: unknown command '{name}'{hint}\n\n{usage}")
    return verb.main(rest)


def _usage(prog: str, verbs: Mapping[str, Verb]) -> str:
    lines = [f"  {name:<12} {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [f"usage: {prog} COMMAND …", "", *lines, "", f"{prog} COMMAND --help shows more"]
    )
