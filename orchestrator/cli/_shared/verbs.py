"""Tables of verbs, and choosing from them: the console script's own, and those of a verb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from orchestrator.errors import ConfigError, did_you_mean


class Verb(NamedTuple):
    """A subcommand.

    Attributes:
        main: takes the arguments after the verb and returns the exit code. It imports what it needs
            itself, so that no verb waits for the imports of another.
        summary: one line for the help.
    """

    main: Callable[[Sequence[str]], int]
    summary: str


def dispatch(
    prog: str,
    verbs: Mapping[str, Verb],
    arguments: Sequence[str],
    *,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> int:
    """Call the verb that ``arguments`` begins with and return its exit code.

    Args:
        prog: what was typed so far, such as ``orchestrator convert``.
        verbs: by name.
        arguments: the verb and what belongs to it; ``help VERB`` is its ``--help``.
        aliases: other names of verbs, not listed in the usage.

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
    if name == "help" and name not in verbs:
        return dispatch(prog, verbs, [*rest[:1], "--help"], aliases=aliases)
    verb = verbs.get(aliases.get(name, name))
    if verb is None:
        hint = did_you_mean(name, [*verbs, *aliases])
        raise ConfigError(f"{prog}: unknown command '{name}'{hint}\n\n{usage}")
    return verb.main(rest)


def _usage(prog: str, verbs: Mapping[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:<{width}} {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [f"usage: {prog} COMMAND …", "", *lines, "", f"{prog} COMMAND --help shows more"]
    )
