"""Class names in JSON: a list, a map from or to their numbers, or COCO's categories.

Whatever the form, classes count from 0, since that is how label files count them: a list whose
numbers begin at 1 would shift every class by one where the files do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.files import read_text_bytes, reason
from orchestrator.data.readers.coco_tables import describe
from orchestrator.data.readers.numbers import shown
from orchestrator.errors import DataError

_FORMS = (
    'expected ["a", "b"], {"0": "a", "1": "b"}, {"a": 0, "b": 1}, or COCO\'s '
    '{"categories": [{"id": 0, "name": "a"}, ...]}'
)
_MAX_BYTES = 1 << 30


def read_class_json(path: Path) -> tuple[str, ...]:
    """The classes, by number.

    Raises:
        DataError: the file is no JSON of these forms, or its classes do not count from 0.
    """
    tree = _parse(path)
    if isinstance(tree, dict):
        for key in ("categories", "names", "classes"):
            if isinstance(tree.get(key), (list, dict)):
                tree = tree[key]
                break
    if isinstance(tree, list):
        return _of_list(tree, path)
    if not isinstance(tree, dict) or not tree:
        raise DataError(f"{path}: holds {describe(tree)}; {_FORMS}")
    numbers: dict[str, object]
    if all(type(value) is int for value in tree.values()):
        numbers = dict(tree)
    elif all(isinstance(value, str) for value in tree.values()):
        numbers = {}
        for number, name in tree.items():
            if name in numbers:
                raise DataError(f"{path}: {shown(name)} is named twice; each class needs its own")
            numbers[name] = int(number) if number.isdecimal() and number.isascii() else number
    else:
        kind = type(next(iter(tree.values())))
        key, value = next(
            (k, v) for k, v in tree.items() if type(v) not in (int, str) or type(v) is not kind
        )
        raise DataError(f"{path}: {shown(key)} is {describe(value)}; {_FORMS}")
    return _by_number(numbers, path)


def _parse(path: Path) -> Any:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {shown(twice)} stands twice in one object")
        return found

    try:
        text = read_text_bytes(path, limit=_MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)})") from error
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise DataError(f"{place}: not valid JSON ({error.msg}); {_FORMS}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def _of_list(entries: Sequence[Any], path: Path) -> tuple[str, ...]:
    if entries and all(isinstance(entry, str) for entry in entries):
        return _by_number(_named(list(enumerate(entries)), path), path)
    named: list[tuple[object, str]] = []
    for place, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(name, str) or "id" not in entry:
            raise DataError(f"{path}: entry {place} is {describe(entry)}; {_FORMS}")
        named.append((entry["id"], name))
    if not named:
        raise DataError(f"{path}: holds no class; {_FORMS}")
    return _by_number(_named(named, path), path)


def _named(entries: Sequence[tuple[object, str]], path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, name in entries:
        if name in found:
            raise DataError(f"{path}: {shown(name)} is named twice; each class needs its own")
        found[name] = number
    return found


def _by_number(numbers: Mapping[str, object], path: Path) -> tuple[str, ...]:
    """Names in the order of their numbers, which must be 0, 1, 2 and so on."""
    # True would be 1 for Python.
    whole = {n: name for name, n in numbers.items() if type(n) is int}
    if sorted(whole) != list(range(len(numbers))):
        listed = ", ".join(str(number) for number in list(numbers.values())[:10])
        raise DataError(
            f"{path}: classes have the numbers {listed}; expected are 0 to {len(numbers) - 1}, "
            "which label files count by. Next: give a list of names in that order"
        )
    return tuple(whole[number] for number in range(len(whole)))
