"""Values given on the command line as ``key.path=value``.

A value follows the scalar rules of the file. What starts with a bracket or a quote is read as
YAML; anything else is one scalar to its last character, so that ``#`` and ``: `` need no quotes.
Lists are entered by index. Overrides apply from left to right; the last one for a key holds.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress

from orchestrator.config import short_forms
from orchestrator.config.explain import shown, unknown_key
from orchestrator.config.problems import KeyPath, Place, Problem, dotted
from orchestrator.config.scalars import Json, ScalarError, resolve_plain
from orchestrator.config.shape import Shape, step_into
from orchestrator.config.yaml_loader import Document, UnreadableError, compose

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


class _RefusedError(Exception):
    """An override that cannot be applied; carries what is wrong with it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*map(str, problems))
        self.problems = problems


def apply(overrides: Sequence[str], document: Document) -> None:
    """Set every override in ``document``; what cannot be set is added to its problems.

    Args:
        overrides: ``key.path=value`` each.
        document: of an experiment; changed in place.
    """
    short_forms.chain_augmentations(document)
    waiting = list(overrides)
    while waiting:
        override = waiting.pop(0)
        if _is_key(override) and waiting and "=" not in waiting[0]:
            # Said once, of both words: the value is no override that has its own mistake.
            message = f"found two words; an override is one: {override}={waiting[0]}"
            place = Place.of_override(f"{override} {waiting.pop(0)}")
            document.problems.append(Problem(place, (), message))
        else:
            document.problems += _problems_of(override, document)


def _is_key(word: str) -> bool:
    """Whether a word looks like the key of an override that lacks its value."""
    parts = word.split(".")
    if len(parts) == 1:
        return (word,) in Shape.root().fields()
    return all(part.isidentifier() for part in parts)


def _problems_of(override: str, document: Document) -> tuple[Problem, ...]:
    try:
        _apply_one(override, document)
    except _RefusedError as error:
        return error.problems
    return ()


def _apply_one(override: str, document: Document) -> None:
    place = Place.of_override(override)
    key, equals, text = (part.strip() for part in override.partition("="))
    if key.startswith("-"):
        message = "an override has no dashes; write key.path=value"
        raise _RefusedError(Problem(place, (), message))
    parts = key.split(".")
    if not equals or not all(parts):
        message = "an override is key.path=value, such as train.epochs=3"
        raise _RefusedError(Problem(place, (), message))
    _put_value(parts, _parse(text, place, tuple(parts)), place, document)


def apply_values(values: Mapping[str, Json], document: Document) -> None:
    """Set every value, in order, in ``document``; what cannot be set is added to its problems.

    Args:
        values: by dotted key; one that ``sweep.space`` names is reported at its place there.
        document: of an experiment; changed in place.
    """
    for key, value in values.items():
        path: KeyPath = ("sweep", "space", key)
        place = document.places.get(path, Place.of_override(f"{key}={json.dumps(value)}"))
        try:
            _put_value(key.split("."), value, place, document)
        except _RefusedError as error:
            document.problems += [
                problem if place.is_override else Problem(place, path, problem.message)
                for problem in error.problems
            ]


def put_default(key: str, value: Json, place: Place, document: Document) -> None:
    """Set the value of a key that is not given; what cannot be set is left to validation.

    Args:
        key: dotted.
        value: of it.
        place: where the value comes from.
        document: of an experiment; changed in place.
    """
    with suppress(_RefusedError):
        _put_value(key.split("."), value, place, document)


def _put_value(parts: list[str], value: Json, place: Place, document: Document) -> None:
    # Sections that an override opens on its way must not stay if it is refused after all.
    draft = copy.deepcopy(document.tree)
    path, opened = _set(draft, _written_out(parts, draft, place), value, place)
    document.tree = draft
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
        document.refused.discard(known)
    document.places.update(dict.fromkeys([*opened, *_paths(value, path)], place))
    short_forms.chain_augmentations(document)


def _written_out(parts: list[str], tree: Json, place: Place) -> list[str]:
    """The path in the section that a list of augmentations has become; other paths as they are."""
    here = list(short_forms.AUGMENTATION)
    chain = step_into(step_into(tree, here[0]), here[1])
    if parts[:2] != here or not _INDEX.fullmatch("".join(parts[2:3])):
        return parts
    steps = step_into(chain, "steps")
    if not isinstance(steps, list):
        return parts
    number = _index(parts[2], [*steps, step_into(chain, "last")], place, tuple(parts[:3]))
    return [*here, *(["last"] if number == len(steps) else ["steps", parts[2]]), *parts[3:]]


def _parse(text: str, place: Place, path: KeyPath) -> Json:
    """The value that ``text`` stands for."""
    if text == "":
        message = "found no value after '='; write null, or \"\" for empty text"
        raise _RefusedError(Problem(place, path, message))
    if text[0] not in "[{\"'":
        try:
            return resolve_plain(text)
        except ScalarError as error:
            raise _RefusedError(Problem(place, path, str(error))) from None
    try:
        fragment = compose(text, lambda *_: place)
    except UnreadableError as error:
        raise _RefusedError(Problem(place, path, error.problem.message)) from None
    if fragment.problems:
        raise _RefusedError(
            *(Problem(place, (*path, *found.path), found.message) for found in fragment.problems)
        )
    return fragment.tree


def _set(tree: Json, parts: list[str], new: Json, place: Place) -> tuple[KeyPath, list[KeyPath]]:
    """Put ``new`` into ``tree``, opening sections that are not there yet.

    Returns:
        The path with list indices as numbers, and the paths of the sections opened.
    """
    path: KeyPath = ()
    opened: list[KeyPath] = []
    shape, section, left = Shape.root(), tree, list(parts)
    while left:
        text = left.pop(0)
        part: str | int = text
        if isinstance(section, list):
            part = _index(text, section, place, (*path, text))
        elif shape.named is not None:
            # A name may have dots itself: it ends where what it names has a key of its own.
            keys = shape.named.key_names()
            length = next((at for at, word in enumerate(left) if word in keys), len(left))
            part, left = ".".join([text, *left[:length]]), left[length:]
        below = shape.child(part, section)
        path = (*path, part)
        if below is None:
            raise _RefusedError(Problem(place, path, unknown_key(path, tree)))
        if not left:
            _put(section, part, new)
            break
        value = step_into(section, part)
        if value is None:
            value = _opening(below)
            _put(section, part, value)
            opened.append(path)
        if not isinstance(value, list | dict):
            message = f"'{dotted(path)}' is {below.describe()}, not more"
            if below.key_names():
                allowed = f"allowed is {below.describe()}"
                message = f"'{dotted(path)}' is {shown(value)}, {allowed}; give it whole"
            raise _RefusedError(Problem(place, (*path, left[0]), message))
        shape, section = below, value
    return path, opened


def _opening(shape: Shape) -> Json:
    """What a section or list that is not given starts from, before an override changes it."""
    default = copy.deepcopy(shape.default)
    if "array" in shape.types:
        return default if isinstance(default, list) else []
    if shape.tag is not None and isinstance(default, dict):
        return {shape.tag: default[shape.tag]}
    return {} if shape.key_names() or shape.named is not None else None


def _put(section: Json, part: str | int, value: Json) -> None:
    match section, part:
        case list(), int(index):
            section[index] = value
        case dict(), str(key):
            section[key] = value


def _index(text: str, values: list[Json], place: Place, path: KeyPath) -> int:
    if _INDEX.fullmatch(text) and int(text) < len(values):
        return int(text)
    have = f"allowed is 0 to {len(values) - 1}" if values else "the list is empty"
    message = f"found the index '{text}', {have}; to change the length, give the whole list"
    raise _RefusedError(Problem(place, path, message))


def _paths(value: Json, path: KeyPath) -> list[KeyPath]:
    """The path of ``value`` and of everything in it."""
    found = [path]
    if isinstance(value, dict):
        for key, child in value.items():
            found += _paths(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            found += _paths(child, (*path, index))
    return found
