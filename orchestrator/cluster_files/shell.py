"""Commands in cluster files: cut into words, with the variables that each of them sees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
#: What is quoted, so that neither a mark of comments nor of documents stands in it; comments;
#: and documents, whose lines are no commands.
_PASSAGE = re.compile(
    r"""
    \\. | '[^']*' | "(?:\\.|[^"\\])*"
    | (?P<comment>(?:^|(?<=[\s;&|(]))\#[^\n]*)
    | (?<!<)<<-?[ \t]*(?P<quote>['"]?)(?P<end>\w+)(?P=quote)(?P<rest>[^\n]*)\n
      (?:.*?\n)??\t*(?P=end)[ \t]*$
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_SEPARATORS = frozenset(";&|()\n")
#: Words before a command that leave it what it is.
_PREFIXES = frozenset(
    {"exec", "nohup", "sudo", "env", "time", "then", "do", "else", "if", "while", "until", "!", "{"}
)
_SHELLS = frozenset({"bash", "dash", "sh"})
#: Commands that start the one behind their options, each with the options that take no value.
_LAUNCHERS = {
    "srun": frozenset(
        re.findall(
            r"\S+",
            """
    --contiguous --disable-status --exact --exclusive --immediate --join --kill-on-bad-exit
    --label --multi-prog --no-allocate --no-kill --oom-kill-step --overcommit --overlap
    --oversubscribe --preserve-env --pty --quiet --reboot --spread-job --test-only
    --unbuffered --use-min-nodes --verbose --wait-for-children -E -I -K -O -Q -X -Z -k -l -s
    -u -v
    """,
        )
    ),
    "timeout": frozenset({"--preserve-status", "--foreground", "--verbose", "-v", "-f", "-p"}),
    "tini": frozenset({"-g", "-s", "-v", "-w"}),
    "torchrun": frozenset({"--standalone", "--no-python", "--module", "-m"}),
}


class ShellError(ValueError):
    """Text that no shell reads: quotes or brackets that do not close."""


@dataclass(frozen=True)
class Command:
    """One simple command.

    Attributes:
        words: the command and what follows, quotes removed.
        env: variables that it sees, as far as the text sets them.
        variables: of the shell, which puts them in the place of ``$NAME``, exported or not.
        launcher: what starts it, with its options: ``srun --nodes=1``.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What is run, without its folder."""
        return self.words[0].rpartition("/")[2]

    def options(self, flags: frozenset[str] = frozenset()) -> dict[str, str]:
        """``--option=value`` and ``--option value``; "" for a flag.

        Args:
            flags: options that take no value.
        """
        found: dict[str, str] = {}
        words = list(self.words[1:])
        while words:
            word = words.pop(0)
            if word == "--":
                break
            if not word.startswith("-"):
                continue
            name, mark, value = word.partition("=")
            if not mark and name not in flags and words and not words[0].startswith("-"):
                value = words.pop(0)
            found[name] = value
        return found


def commands(text: str, env: Mapping[str, str] | None = None) -> Iterator[Command]:
    """The simple commands of a shell text, those in ``bash -c '…'`` included.

    Args:
        text: of any number of lines.
        env: variables set before it.

    Raises:
        ShellError: quotes do not close.
    """
    variables = dict(env or {})
    exported, all_are = set(variables), False
    for words in _simple(text):
        own: dict[str, str] = {}
        while words:
            assignment = _ASSIGNMENT.fullmatch(words[0])
            if assignment is not None:
                own[assignment[1]] = assignment[2]
            elif words[0] not in _PREFIXES:
                break
            words = words[1:]
        if not words:
            variables |= own
            exported |= set(own) if all_are else set()
            continue
        if words[0] == "export" or (words[0] in ("declare", "typeset") and "-x" in words):
            found = [_ASSIGNMENT.fullmatch(word) for word in words[1:]]
            variables |= {each[1]: each[2] for each in found if each is not None}
            exported |= {word.partition("=")[0] for word in words[1:]}
            continue
        if words[0] == "set":
            all_are = all_are or any(re.fullmatch(r"-[a-z]*a[a-z]*", word) for word in words[1:])
        launcher: tuple[str, ...] = ()
        if words[0] in _LAUNCHERS:
            rest = _behind_options(words)
            launcher, words = tuple(words[: len(words) - len(rest)]), rest
            if not words:
                continue
        seen = {name: value for name, value in variables.items() if name in exported} | own
        inner = _text_of_shell(words)
        if inner is not None:
            yield from commands(inner, seen)
            continue
        yield Command(tuple(words), seen, dict(variables), launcher)


def _text_of_shell(words: list[str]) -> str | None:
    """The text that a shell is given to run; what follows it are its arguments."""
    if words[0].rpartition("/")[2] not in _SHELLS:
        return None
    pairs = pairwise(words[1:])
    return next((text for word, text in pairs if re.fullmatch(r"-[a-z]*c", word)), None)


def _behind_options(words: list[str]) -> list[str]:
    """What a launcher starts."""
    rest, alone = list(words[1:]), _LAUNCHERS[words[0]]
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "--":
            return rest
        long = option.startswith("--")
        if option not in alone and "=" not in option and (long or len(option) == 2):
            rest = rest[1:]
    return rest[1:] if words[0] == "timeout" else rest


def _without_passages(text: str) -> str:
    """A text without its comments and its documents."""

    def kept(found: re.Match[str]) -> str:
        if found["end"]:
            return _without_passages(found["rest"])
        return "" if found["comment"] else found[0]

    return _PASSAGE.sub(kept, text)


def _simple(text: str) -> Iterator[list[str]]:
    plain = _without_passages(text).replace("\\\n", " ")
    lexer = shlex.shlex(plain, posix=True, punctuation_chars=";&|()<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    skip = False
    try:
        for token in lexer:
            if token and set(token) <= _SEPARATORS:
                if words:
                    yield words
                words = []
            elif token and set(token) <= set("<>&|"):
                skip = True
                if words[-1:] == ["2"]:
                    words.pop()
            elif skip:
                skip = False
            else:
                words.append(token)
    except ValueError as error:
        raise ShellError(str(error)) from error
    if words:
        yield words
