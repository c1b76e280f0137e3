"""Commands in cluster files: cut into words, with the variables that each of them sees."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

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
_SHELLS = frozenset({"bash", "sh", "/bin/bash", "/bin/sh"})


class ShellError(ValueError):
    """Text that no shell reads: quotes or brackets that do not close."""


@dataclass(frozen=True)
class Command:
    """One simple command.

    Attributes:
        words: the command and what follows, quotes removed.
        env: variables that it sees, as far as the text sets them.
    """

    words: tuple[str, ...]
    env: Mapping[str, str]

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
            continue
        if words[0] == "export":
            found = (_ASSIGNMENT.fullmatch(word) for word in words[1:])
            variables |= {each[1]: each[2] for each in found if each is not None}
            continue
        if words[0] in ("srun", "timeout", "tini", "torchrun"):
            words = _behind_options(words)
            if not words:
                continue
        if words[0] in _SHELLS and any(_takes_text(word) for word in words[1:3]):
            yield from commands(words[-1], variables | own)
            continue
        yield Command(tuple(words), variables | own)


def _takes_text(word: str) -> bool:
    return re.fullmatch(r"-[a-z]*c", word) is not None


def _behind_options(words: list[str]) -> list[str]:
    rest = words[1:]
    while rest and (rest[0].startswith("-") or re.fullmatch(r"[\d.]+[smhd]?", rest[0])):
        rest = rest[1:]
    return rest


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
