"""Pydantic's findings as problems with a place, what is allowed and the nearest match."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from orchestrator.config.problems import KeyPath, Place, Problem, dotted
from orchestrator.config.scalars import (
    Json,
    ScalarError,
    resolve_plain,
    scalar_text,
    shorten,
)
from orchestrator.config.shape import Shape, one_of, step_into
from orchestrator.errors import nearest

_PYDANTIC_TYPES = frozenset(typing.get_args(ErrorType)) - {"value_error", "assertion_error"}
_MISSING = "required key is missing"
_TRUE_WORDS = ("yes", "on", "y")
_FALSE_WORDS = ("no", "off", "n")


def explain(
    error: ValidationError,
    tree: Json,
    places: Mapping[KeyPath, Place],
    refused: Iterable[KeyPath],
    shape: Shape | None = None,
) -> list[Problem]:
    """Everything pydantic found wrong with ``tree``, one problem for each path.

    Args:
        error: raised for ``tree`` by the model that ``shape`` describes.
        tree: the values as given, overrides applied.
        places: of everything in the tree; a missing key has that of its section.
        refused: paths that have been reported already.
        shape: of the whole file; by default that of an experiment.
    """
    root = shape or Shape.root()
    skipped = set(refused)
    problems: dict[tuple[KeyPath, str], Problem] = {}
    for item in error.errors(include_url=False, include_input=False):
        for path, message in _findings(item, tree, root):
            prefixes = {path[:length] for length in range(len(path) + 1)}
            if not prefixes & skipped:
                problems[path, message] = Problem(place_of(path, places), path, message)
    # What a variant would have filled in is not missing, the variant is wrong.
    unnamed = {path[:-1] for path, _ in problems if path[-1:] == ("variant",)}
    return [
        problem
        for (path, message), problem in problems.items()
        if not message.startswith(_MISSING)
        or not any(path[: len(section)] == section for section in unnamed)
    ]


def place_of(path: KeyPath, places: Mapping[KeyPath, Place]) -> Place:
    """The place of ``path``, or of the nearest section around it."""
    while path not in places:
        path = path[:-1]
    return places[path]


def _findings(item: Mapping[str, Any], tree: Json, root: Shape) -> Iterator[tuple[KeyPath, str]]:
    kind = item["type"]
    context = item.get("ctx", {})
    path = root.key_path(item["loc"])
    if kind == "missing" and isinstance(path[-1], int):
        # The items of a list that is too short are not keys that anyone could look for.
        kind, path = "too_short", path[:-1]
    shape = root.at(path, tree)
    if kind == "conflict":
        for key, message in context["conflicts"]:
            yield (*path, *key.split(".")), message
    elif kind == "extra_forbidden":
        yield path, unknown_key(path, tree, root)
    elif shape is not None and shape.tag is not None and kind.startswith("union_tag"):
        path = (*path, shape.tag)
        allowed = one_of(shape.tags)
        if kind == "union_tag_invalid":
            yield path, _not_allowed(_value_at(tree, path), allowed, shape.tags)
        else:
            yield path, f"{_MISSING}; allowed is {allowed}"
    elif shape is not None and kind == "missing":
        yield path, f"{_MISSING}; allowed is {shape.describe()}"
    elif shape is not None and kind in _PYDANTIC_TYPES:
        yield path, _wrong_value(_value_at(tree, path), shape)
    else:
        yield path, item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def _value_at(tree: Json, path: KeyPath) -> Json:
    for part in path:
        tree = step_into(tree, part)
    return tree


def unknown_key(path: KeyPath, tree: Json, root: Shape | None = None) -> str:
    """What to say about the last key of ``path``, which the schema does not know."""
    root = root or Shape.root()
    *parents, key = path
    section = tuple(parents)
    value = _value_at(tree, section)
    shape = root.at(section, tree)
    allowed = shape.key_names(value) if shape is not None else []
    tag = value.get(shape.tag or "") if shape is not None and isinstance(value, dict) else None
    of = f" of {tag}" if isinstance(tag, str) else ""
    if not allowed:
        return f"unknown key{of}; {dotted(section)} has no keys"
    if "." in str(key):
        hint = _as_sections(path, tree, root)
    else:
        guess = suggestion(str(key), allowed) or _elsewhere(path, root)
        hint = f"; did you mean '{guess}'?" if guess else ""
    return f"unknown key{of}; allowed are {one_of(allowed)}{hint}"


def _as_sections(path: KeyPath, tree: Json, root: Shape) -> str:
    """How a file has what an override would name by a key with dots."""
    meant = dotted(path)
    guess = meant if tuple(meant.split(".")) in root.fields() else _elsewhere(path, root)
    if guess is None:
        return ""
    value = _value_at(tree, path)
    text = "..." if isinstance(value, dict | list) else scalar_text(value)
    for part in reversed(guess.split(".")[1:]):
        text = f"{{{part}: {text}}}"
    which = "" if guess == meant else f"did you mean '{guess}'? "
    return f"; {which}write it as sections: {guess.partition('.')[0]}: {text}"


def field_named(name: str) -> str | None:
    """The key path of the uppermost value whose last part is this one; None where there is none."""
    found = [field for field in Shape.root().fields() if field[-1] == name.replace("-", "_")]
    return dotted(min(found, key=len)) if found else None


def _elsewhere(path: KeyPath, root: Shape) -> str | None:
    """A field with this very name in another section, the nearest one first."""
    wanted = str(path[-1]).split(".")[-1]
    found = [field for field in root.fields() if field[-1] == wanted]
    return dotted(max(found, key=lambda field: _shared(field, path))) if found else None


def _shared(one: KeyPath, other: KeyPath) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def suggestion(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` is most likely a slip of, letter case aside."""
    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    guess = nearest(word.casefold().replace("-", "_"), by_folded)
    return by_folded[guess] if guess is not None else None


def _wrong_value(value: Json, shape: Shape) -> str:
    message = _not_allowed(value, shape.describe(), shape.choices)
    hint = _hint(value, shape) if "did you mean" not in message else None
    return f"{message}; {hint}" if hint else message


def _not_allowed(value: Json, allowed: str, choices: Iterable[str]) -> str:
    guess = suggestion(value, choices) if isinstance(value, str) else None
    hint = f"; did you mean '{guess}'?" if guess else ""
    return f"found {shown(value)}, allowed is {allowed}{hint}"


def shown(value: Json) -> str:
    """What was found, in words."""
    match value:
        case dict():
            return "a section with the keys " + one_of(list(value)[:5]) if value else "no keys"
        case list():
            return f"a list of {len(value)}"
        case str():
            return f"'{shorten(value)}'"
        case _:
            return scalar_text(value)


def _hint(value: Json, shape: Shape) -> str | None:
    """What the writer of ``value`` most likely meant to write."""
    types = shape.types
    if isinstance(value, str):
        return _hint_for_text(value, shape, types)
    if "integer" in types and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    if types == {"string"} and isinstance(value, bool | int | float):
        # Not the value: 1234e5 and 0x10 read as other texts than they are.
        return "write quotes around it, which make it text"
    if types == {"array"} and not isinstance(value, list | dict):
        return f"write [{scalar_text(value)}]"
    return None


def _hint_for_text(value: str, shape: Shape, types: set[str]) -> str | None:
    if shape.tag is not None:
        guess = suggestion(value, shape.tags)
        return f"write {{{shape.tag}: {guess}}}" if guess else None
    if "boolean" in types and value.lower() in (*_TRUE_WORDS, *_FALSE_WORDS):
        return f"write {'true' if value.lower() in _TRUE_WORDS else 'false'}"
    if shape.nullable and value.lower() == "none":
        return "write null"
    if types & {"integer", "number"}:
        number = value.replace("_", "").replace(",", "").strip()
        try:
            meant = resolve_plain(number)
        except ScalarError:
            return None
        if isinstance(meant, int | float) and not isinstance(meant, bool):
            return f"write {number}, without quotes"
    return None
