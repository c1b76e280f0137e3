"""YAML text to plain values with the position of every key.

PyYAML parses; what its events mean is decided here, because its loaders keep the last of two
equal keys, guess scalars by YAML 1.1, and expand aliases without a bound. Only what an experiment
needs is accepted: one document of mappings with text keys, lists and scalars. Tags, merge keys,
directives and tabs are refused, and so is whatever exceeds the limits below.

A file that can be read is read to its end, and everything found wrong on the way is collected.
Broken syntax and exceeded limits end the reading at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from orchestrator.config.problems import KeyPath, Place, Problem, error_of
from orchestrator.config.scalars import (
    Json,
    Scalar,
    ScalarError,
    check_text,
    resolve_plain,
    shorten,
)
from orchestrator.errors import ConfigError, did_you_mean

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
#: Counted after every alias has been replaced by what it stands for.
MAX_NODES = 10_000
MAX_ALIASES = 100

# libyaml parses a megabyte in 10 ms where the pure Python parser takes a second. Where PyYAML was
# built without it, verdicts are the same.
_PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: Tabs, control characters and line breaks of YAML 1.1 that YAML 1.2 reads as text.
_REFUSED_CHARACTER = re.compile(
    "[^\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)

_MAPPINGS = {
    "experiment": "an experiment is a mapping of keys, such as 'name: my-run'",
    "sweep": "a sweep file is a mapping of one key, such as 'sweep: {trials: 8}'",
}

_HINTS = {
    "mapping values are not allowed": "check the indentation, and quote text that holds ': '",
    "could not find expected ':'": "write 'key: value', with a space after the colon",
    "did not find expected key": "check the indentation and the quotes",
    "did not find expected '-' indicator": "check the indentation",
    "expected <block end>": "check the indentation",
    "did not find expected ',' or": "close the bracket",
    "expected ',' or": "close the bracket",
    "cannot start any token": "quote the text",
    "unexpected end of stream": "close the quotes or the bracket",
    "undefined tag handle": "remove the tag",
}


class UnreadableError(Exception):
    """The text cannot be read any further; carries the one problem that says why."""

    def __init__(self, place: Place, message: str, path: KeyPath = ()) -> None:
        super().__init__(message)
        self.problem = Problem(place, path, message)


@dataclass
class Document:
    """What a text says, and where it says it.

    Attributes:
        tree: plain values; None stands in for a refused one.
        places: of every key and list item by its path; the empty path is the document's.
        problems: found while reading; with any, the tree must not be used.
        refused: paths whose value was refused, so that nothing else is said about them.
    """

    tree: Json = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: set[KeyPath] = field(default_factory=set)


@dataclass
class _Node:
    """A composed value, which several aliases may share.

    Attributes:
        value: a scalar, list items, or mapping entries; each item with the place it is given at.
        size: nodes in it after alias expansion.
        height: levels in it; 1 for a scalar.
        refused: whether it is a scalar that no field may have.
    """

    value: Scalar | list[tuple[Place, _Node]] | dict[str, tuple[Place, _Node]]
    size: int = 1
    height: int = 1
    refused: bool = False


def load_file(
    path: Path, *, kind: Literal["experiment", "sweep"] = "experiment", check: Sequence[str] = ()
) -> Document:
    """Read a YAML file that holds a mapping.

    Args:
        path: of the file.
        kind: what the mapping is.
        check: see :func:`error_of`.

    Raises:
        ConfigError: it does not exist, is no readable YAML, or exceeds a limit.
    """
    source = str(path)
    try:
        text = read_text(path, f"{kind} file")
        document = compose(text, lambda *at: Place(source, *at))
        if not isinstance(document.tree, dict):
            found = "nothing" if document.tree is None else "a list or a single value"
            raise UnreadableError(
                document.places[()],
                f"found {found}; {_MAPPINGS[kind]}",
            )
    except UnreadableError as error:
        raise error_of([error.problem], source, check=check) from None
    return document


def read_text(path: Path, what: str = "experiment file") -> str:
    """The text of a file.

    Args:
        path: of the file.
        what: it is called in errors.

    Raises:
        ConfigError: it does not exist, or may not be read.
        UnreadableError: it is too large or not UTF-8; names the line.
    """
    return _decode(_read(path, what), str(path))


def _read(path: Path, what: str) -> bytes:
    try:
        # A pipe may have no end, and opening one may never end.
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError("not a file")
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        siblings = [str(other) for other in sorted(path.parent.glob("*.y*ml"))[:1000]]
        hint = did_you_mean(str(path), siblings, like="{}")
        raise ConfigError(f"{what} {path} does not exist{hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"{what} {path} cannot be read: {reason}; give the path of a readable file"
        ) from None
    if len(data) > MAX_BYTES:
        raise UnreadableError(
            Place(str(path), 1, 1),
            f"found more than {MAX_BYTES:,} bytes, which is the limit; is this the right file?",
        )
    return data


def _decode(data: bytes, source: str) -> str:
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableError(
            Place(source, 1, 1), "found a byte-order mark; save the file as UTF-8 without one"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        raise UnreadableError(
            _place_of(before, lambda *at: Place(source, *at)),
            f"found byte 0x{data[error.start]:02x}, which is not UTF-8; save the file as UTF-8",
        ) from None


def _place_of(before: str, place: Callable[[int, int], Place]) -> Place:
    """The place of the character that follows ``before``."""
    line = before.count("\n") + 1
    return place(line, len(before) - before.rfind("\n"))


def compose(text: str, place: Callable[[int, int], Place]) -> Document:
    """Read one YAML document.

    Args:
        text: of at most ``MAX_BYTES`` characters.
        place: makes a place of a line and a column, both counted from 1.

    Raises:
        UnreadableError: broken syntax, or a limit is exceeded.
    """
    return _composed(text, place, lambda composer: composer.document())


def compose_all(text: str, source: str) -> list[Document]:
    """Read one or more YAML documents, whose values may hold a ``${…}``.

    Args:
        text: of a file.
        source: the file, as it was named.

    Raises:
        UnreadableError: broken syntax, or a limit is exceeded.
    """
    return _composed(
        text,
        lambda *at: Place(source, *at),
        lambda composer: list(composer.documents()),
        expanded=True,
    )


_T = TypeVar("_T")


def _composed(
    text: str,
    place: Callable[[int, int], Place],
    read: Callable[[_Composer], _T],
    *,
    expanded: bool = False,
) -> _T:
    odd = _REFUSED_CHARACTER.search(text)
    if odd is not None:
        what = (
            'a tab; indent and separate with spaces, and write "\\t" inside quotes'
            if odd[0] == "\t"
            else f"the control character U+{ord(odd[0]):04X}; remove it or write it as an escape "
            "inside double quotes"
        )
        raise UnreadableError(_place_of(text[: odd.start()], place), f"found {what}")
    try:
        return read(_Composer(text, place, expanded=expanded))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = place(mark.line + 1, mark.column + 1) if mark else place(1, 1)
        problem = " ".join(part for part in (error.context, error.problem) if part)
        hint = next((hint for start, hint in _HINTS.items() if start in problem), None)
        raise UnreadableError(
            where, f"this is not YAML: {problem}; {hint or 'correct the text here'}"
        ) from None


class _Composer:
    """Turns the parser's events into nodes, and the nodes into a document."""

    def __init__(
        self, text: str, place: Callable[[int, int], Place], *, expanded: bool = False
    ) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=_PARSER)
        self._place = place
        self._expanded = expanded
        self._anchors: dict[str, tuple[Place, _Node | None]] = {}
        self._nodes = 0
        self._aliases = 0
        self._out = Document()

    def document(self) -> Document:
        """Read the one document there may be."""
        found = next(self.documents())
        if self._out is not found:
            return found
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise UnreadableError(
                self._at(after), "found a second document; a file holds one, remove the '---'"
            )
        return found

    def documents(self) -> Iterator[Document]:
        """Read all documents, at least one."""
        next(self._events)
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            yield Document(places={(): self._place(1, 1)})
            return
        while not isinstance(start, yaml.StreamEndEvent):
            if start.version or start.tags:
                raise UnreadableError(
                    self._at(start), "found a % directive; remove it, files are read as YAML 1.2"
                )
            # Anchors end with their document.
            self._anchors, self._out = {}, Document()
            event = next(self._events)
            root = self._node(event, (), depth=1)
            next(self._events)
            self._out.tree = self._unfold(root, (), self._at(event))
            yield self._out
            start = next(self._events)

    def _at(self, event: Any) -> Place:
        return self._place(event.start_mark.line + 1, event.start_mark.column + 1)

    def _node(self, event: Any, path: KeyPath, *, depth: int) -> _Node:
        where = self._at(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), where, path, depth)
        self._count(1, where, path)
        if depth > MAX_DEPTH:
            self._too_deep(where, path)
        anchor = event.anchor
        if anchor is not None:
            if anchor in self._anchors:
                first = self._anchors[anchor][0]
                message = f"anchor '&{shorten(anchor)}' was already set at {first}; rename one"
                raise UnreadableError(where, message, path)
            self._anchors[anchor] = (where, None)
        if event.tag is not None:
            message = f"found the tag {shorten(event.tag)}; tags are not allowed, remove it"
            self._out.problems.append(Problem(where, path, message))
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, where, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(path, depth)
        else:
            node = self._mapping(path, depth)
        node.refused |= event.tag is not None
        if anchor is not None:
            self._anchors[anchor] = (where, node)
        return node

    def _alias(self, anchor: str, where: Place, path: KeyPath, depth: int) -> _Node:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            raise UnreadableError(
                where, f"found more than {MAX_ALIASES} aliases, which is the limit", path
            )
        if anchor not in self._anchors:
            hint = did_you_mean(anchor, self._anchors, like="'*{}'")
            hint = hint or "; set it with '&' further up"
            message = f"alias '*{shorten(anchor)}' has no anchor{hint}"
            raise UnreadableError(where, message, path)
        node = self._anchors[anchor][1]
        if node is None:
            message = f"alias '*{shorten(anchor)}' stands inside its own anchor; write the value"
            raise UnreadableError(where, message, path)
        self._count(node.size, where, path)
        if depth + node.height - 1 > MAX_DEPTH:
            self._too_deep(where, path)
        return node

    def _count(self, nodes: int, where: Place, path: KeyPath) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            raise UnreadableError(
                where,
                f"found more than {MAX_NODES:,} values after alias expansion, which is the limit",
                path,
            )

    def _too_deep(self, where: Place, path: KeyPath) -> NoReturn:
        raise UnreadableError(
            where, f"nested deeper than {MAX_DEPTH} levels, which is the limit", path
        )

    def _scalar(self, event: Any, where: Place, path: KeyPath) -> _Node:
        try:
            read = check_text if event.style else resolve_plain
            return _Node(read(event.value, expanded=self._expanded))
        except ScalarError as error:
            self._out.problems.append(Problem(where, path, str(error)))
            return _Node(None, refused=True)

    def _sequence(self, path: KeyPath, depth: int) -> _Node:
        items: list[tuple[Place, _Node]] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            item = self._node(event, (*path, len(items)), depth=depth + 1)
            items.append((self._at(event), item))
        return _around(items, [item for _, item in items])

    def _mapping(self, path: KeyPath, depth: int) -> _Node:
        entries: dict[str, tuple[Place, _Node]] = {}
        values: list[_Node] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            where = self._at(event)
            key = self._key(event, where, path)
            inner = path if key is None else (*path, key)
            value = self._node(next(self._events), inner, depth=depth + 1)
            values.append(value)
            if key is None:
                continue
            if key in entries:
                message = f"duplicate key, first given at {entries[key][0]}; keep one of them"
                self._out.problems.append(Problem(where, inner, message))
                continue
            entries[key] = (where, value)
        return _around(entries, values)

    def _key(self, event: Any, where: Place, path: KeyPath) -> str | None:
        """The key's text; None if it is no text, which is then noted."""
        if not isinstance(event, yaml.ScalarEvent) or event.tag or event.anchor:
            raise UnreadableError(
                where, "a key must be plain text: no list, mapping, tag, anchor or alias", path
            )
        self._count(1, where, path)
        try:
            key = (check_text if event.style else resolve_plain)(event.value)
        except ScalarError as error:
            self._out.problems.append(Problem(where, path, f"in a key: {error}"))
            return None
        if key == "<<" and not event.style:
            message = "merge keys ('<<') are not part of YAML 1.2; write the keys out"
        elif not isinstance(key, str):
            message = f"found the key {shorten(event.value) or 'null'}; a key must be text"
        else:
            return key
        self._out.problems.append(Problem(where, path, message))
        return None

    def _unfold(self, node: _Node, path: KeyPath, where: Place) -> Json:
        """Plain values of ``node``; notes the place of everything in it."""
        self._out.places[path] = where
        if node.refused:
            self._out.refused.add(path)
        if isinstance(node.value, dict):
            return {
                key: self._unfold(value, (*path, key), at)
                for key, (at, value) in node.value.items()
            }
        if isinstance(node.value, list):
            return [
                self._unfold(item, (*path, index), at)
                for index, (at, item) in enumerate(node.value)
            ]
        return node.value


def _around(
    value: list[tuple[Place, _Node]] | dict[str, tuple[Place, _Node]], children: list[_Node]
) -> _Node:
    """The node of a collection; keys of a mapping count as nodes too."""
    keys = len(children) if isinstance(value, dict) else 0
    return _Node(
        value,
        size=1 + keys + sum(child.size for child in children),
        height=1 + max((child.height for child in children), default=0),
    )
