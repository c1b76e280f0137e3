"""The argument parser every verb uses."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from orchestrator.errors import ConfigError, nearest

_UNKNOWN = "unrecognized arguments: "
_MISSING = "the following arguments are required: "


class _CapturedError(Exception):
    """Carries a parser out of its verb, instead of arguments into it."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


def number_between(
    low: float, high: float = math.inf, *, whole: bool = False, ends: str = "[]"
) -> Callable[[str], Any]:
    """The type of an option that takes a finite number.

    Args:
        low: end of the allowed interval.
        high: its other end.
        whole: whether the number has to be an integer.
        ends: brackets that say, as those of an interval do, whether the ends are allowed.
    """
    bounds = [f"{'>=' if ends[0] == '[' else '>'} {low:g}"]
    if high < math.inf:
        bounds.append(f"{'<=' if ends[1] == ']' else '<'} {high:g}")
    allowed = f"a {'whole ' if whole else ''}number {' and '.join(bounds)}"

    def read(text: str) -> float:
        try:
            number: float = int(text) if whole else float(text)
        except ValueError:
            number = math.nan
        above = number > low or (number == low and ends[0] == "[")
        below = number < high or (number == high and ends[1] == "]")
        # No comparison holds for what is no number; infinity is below nothing.
        if not (above and below and number < math.inf):
            raise argparse.ArgumentTypeError(f"found {text}, allowed is {allowed}")
        return number

    return read


#: The type of an option that counts something.
COUNT = number_between(1, whole=True)


def options_of(main: Callable[[Sequence[str]], int]) -> list[str]:
    """Options of a verb, which is not run; none of one that chooses among verbs of its own."""
    Parser.capturing = True
    try:
        main([])
    except _CapturedError as captured:
        return list(captured.parser._option_string_actions)
    except ConfigError:
        return ["-h", "--help"]
    finally:
        Parser.capturing = False
    return []


class _Formatter(argparse.HelpFormatter):
    """Shows a metavar that says itself what may be repeated as it is, and not a second time."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if isinstance(action.metavar, str) and "..." in action.metavar:
            return action.metavar
        return super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """Argparse without abbreviations, whose usage errors are ConfigErrors.

    Options and ``key.path=value`` may stand in any order.
    """

    #: Whether parsers leave their verbs before anything is done; see :func:`options_of`.
    capturing = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Formatter, **kwargs})
        self._mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, except that what has no dashes may stand between options."""
        if Parser.capturing:
            raise _CapturedError(self)
        plain = self._subparsers is not None or not self._get_positional_actions()
        if plain or self._mixing or _exclusive_positionals(self):
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False

    def error(self, message: str) -> NoReturn:
        """Raise a ConfigError; argparse would exit with 2."""
        hint = ""
        if message.startswith(_UNKNOWN):
            hint = self._hint(message.removeprefix(_UNKNOWN).split())
        if message.startswith(_MISSING):
            optional = [a.metavar for a in self._get_positional_actions() if a.nargs in ("*", "?")]
            # What stands in brackets there is not required.
            names = re.sub(r" \[.*?\](?=, |$)", "", message.removeprefix(_MISSING)).split(", ")
            message = _MISSING + ", ".join(name for name in names if name not in optional)
        raise ConfigError(f"{self.prog}: {message}{hint}\n{self.prog} --help shows the usage")

    def _hint(self, words: Sequence[str]) -> str:
        """What the first unknown option was most likely meant to be."""
        place, word = next(
            ((place, word) for place, word in enumerate(words) if word.startswith("-")), (0, "")
        )
        if not word:
            return ""
        key, equals, value = word.lstrip("-").partition("=")
        # A slip seldom begins wrongly: --seed=3 is no --sweep.
        alike = [option for option in self._option_string_actions if option[2:4] == key[:2]]
        guess = nearest(f"--{key}", alike)
        if guess is not None:
            return f"; did you mean {guess}?"
        path = key if "." in key else _field(key) or (key if equals else None)
        if path is None or not (equals or "." in key or self._takes_overrides):
            return ""
        after = words[place + 1 : place + 2]
        value = value or (after[0] if after and not after[0].startswith("-") else "VALUE")
        return f"; overrides have no dashes, write {path}={value}"

    @property
    def _takes_overrides(self) -> bool:
        names = (action.metavar for action in self._get_positional_actions())
        return any("key.path=value" in str(name) for name in names)


def _field(name: str) -> str | None:
    """The key path of a value of an experiment by its last part; None where there is none."""
    from orchestrator.config.explain import field_named

    return field_named(name)


def _exclusive_positionals(parser: argparse.ArgumentParser) -> bool:
    """Whether options exclude positional arguments, which argparse cannot mix."""
    return any(
        not action.option_strings
        for group in parser._mutually_exclusive_groups
        for action in group._group_actions
    )
