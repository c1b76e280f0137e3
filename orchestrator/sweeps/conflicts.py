"""What a space asks for that no trial would ever do: found before the first of them starts.

A key whose condition never holds, and a value that another key replaces in every trial, look like
parts of a search and are none. Conditions see few keys, so the combinations of those are looked at
one by one.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from orchestrator.config.places import places_of
from orchestrator.config.scalars import Json
from orchestrator.config.schema import Domain, Experiment
from orchestrator.errors import nearest
from orchestrator.sweeps.space import Space, Values, combinations, holds, index_of, look_up, options

#: Combinations looked at for one key; a search that is cut off refuses nothing.
_MOST = 20_000
#: Stands for every value of a range that no condition names; equal to none of them.
_OTHER = math.nan


class Finding(NamedTuple):
    """One thing that no trial would do.

    Attributes:
        key: of ``sweep.space``.
        message: what is wrong, and what to do.
    """

    key: str
    message: str


def findings(space: Space, base: Json) -> Iterator[Finding]:
    """Keys that no trial sets, and values that another key replaces.

    Args:
        space: of the sweep, its keys and conditions known to exist.
        base: tree of the experiment, which conditions see where the sweep sets nothing.
    """
    dead = [key for key in space if not _is_set(space, base, [key])]
    for key in dead:
        yield Finding(key, _why_never(space, base, key))
    alive = [key for key in space if key not in dead]
    for first, second in itertools.combinations(alive, 2):
        if _is_below(first, second) and _is_set(space, base, [first, second]):
            yield Finding(
                first,
                f"{second}, which comes later, replaces the whole section, and with it this value; "
                f"put {second} before {first}",
            )
        if _is_below(second, first):
            yield from _replaced_parts(space, base, first, second)


def missing_places(
    space: Space, base: Experiment, trials: Iterable[Experiment]
) -> Iterator[Finding]:
    """Files and folders that trials name, other than the experiment itself does, and that are gone.

    Args:
        space: of the sweep.
        base: the experiment as it stands.
        trials: some with the values of every choice.
    """
    told = set(places_of(base))
    for trial in trials:
        for place in places_of(trial):
            if place in told or place.is_written or "://" in place.location:
                continue
            told.add(place)
            if not os.path.exists(place.location):  # noqa: PTH110
                key = _setter(space, place.key)
                yield Finding(
                    key, f"{place.key} would be {place.location}, which does not exist; correct it"
                )


def _setter(space: Space, key: str) -> str:
    """The key of a space by which ``key`` has its value."""
    section = key.partition(".")[0]
    near = (one for one in space if key == one or _is_below(key, one) or one == f"{section}.root")
    return next(near, next(iter(space)))


def _is_below(key: str, section: str) -> bool:
    return key.startswith(f"{section}.")


def _applies(domain: Domain, values: Values, base: Json) -> bool:
    return all(holds(look_up(on, values, base), want) for on, want in domain.when.items())


def _is_set(space: Space, base: Json, keys: list[str]) -> bool:
    """Whether some trial sets all of ``keys``."""
    found = 0
    for values in _settings(space, base, keys):
        if all(_applies(space[key], values, base) for key in keys):
            return True
        found += 1
    return found == _MOST


def _settings(space: Space, base: Json, keys: list[str]) -> Iterator[Values]:
    """Combinations of what decides whether ``keys`` are set."""
    wanted: list[str] = list(keys)
    seen: set[str] = set()
    while wanted:
        for on in space[wanted.pop()].when:
            above = [key for key in space if on == key or _is_below(on, key)]
            wanted += [key for key in above if key not in seen]
            seen.update(above)
    deciding = {key: domain for key, domain in space.items() if key in seen}
    named = _named_values(space)
    return itertools.islice(
        combinations(deciding, base, lambda key, domain: _telling(domain, named.get(key, []))),
        _MOST,
    )


def _named_values(space: Space) -> dict[str, list[Json]]:
    """The values that conditions name, by the key they look at."""
    named: dict[str, list[Json]] = {}
    for domain in space.values():
        for on, want in domain.when.items():
            named.setdefault(on, []).extend(_wants(want))
    return named


def _wants(want: Json) -> list[Json]:
    return list(want) if isinstance(want, list | tuple) else [want]


def _telling(domain: Domain, named: list[Json]) -> list[Json]:
    """Values of a domain that conditions can tell from each other."""
    if domain.choice is not None:
        return list(options(domain))
    return [*(value for value in named if _takes(domain, value)), _OTHER]


def _takes(domain: Domain, value: Json) -> bool:
    """Whether a range can have exactly this value: one without steps does so by chance only."""
    if isinstance(value, bool) or not isinstance(value, int | float) or domain.ends is None:
        return False
    low, high = domain.ends
    if not low <= value <= high:
        return False
    if domain.uniform is not None and domain.step is not None:
        with suppress(ValueError):
            return index_of(domain, value) >= 0
        return False
    whole = domain.integer is not None or domain.logint is not None
    return whole and (value - low) % (domain.step or 1) == 0


def _why_never(space: Space, base: Json, key: str) -> str:
    for on, want in space[key].when.items():
        seen = [look_up(on, values, base) for values in _settings(space, base, [key])]
        if any(holds(value, want) for value in seen):
            continue
        distinct = list(dict.fromkeys(map(_text, seen)))
        wants = _wants(want)
        guesses = (nearest(str(one), [str(value) for value in seen]) for one in wants)
        guess = next((one for one in guesses if one is not None), None)
        hint = f"; did you mean {_text(guess)}?" if guess is not None else ""
        return (
            f"no trial would set it: when asks for {on} "
            f"{' or '.join(map(_text, wants)) or 'of an empty list'}, and it "
            f"is {' or '.join(distinct)} in every trial{hint}"
        )
    conditions = " and ".join(space[key].when)
    return f"no trial would set it: its conditions on {conditions} never hold together"


def _text(value: Json) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "any other number of its range"
    return "not given" if value is None else json.dumps(value)


def _replaced_parts(space: Space, base: Json, section: str, key: str) -> Iterator[Finding]:
    """Parts of the choices of a section that a later key replaces whenever they are chosen."""
    for position, choice in enumerate(options(space[section]) if space[section].choice else []):
        given = look_up(key.removeprefix(f"{section}."), {}, choice)
        if given is None:
            continue
        chosen = {**space, section: space[section].model_copy(update={"choice": (choice,)})}
        if _always(chosen, base, section, key):
            yield Finding(
                section,
                f"choice {position + 1} says {key.removeprefix(f'{section}.')} is "
                f"{json.dumps(given)}, which {key} replaces in every trial; leave it out",
            )


def _always(space: Space, base: Json, section: str, key: str) -> bool:
    """Whether every trial that sets ``section`` sets ``key`` as well, and there is one."""
    found = 0
    for values in _settings(space, base, [section, key]):
        if not _applies(space[section], values, base):
            continue
        if not _applies(space[key], {**values, section: _only(space[section])}, base):
            return False
        found += 1
    return 0 < found < _MOST


def _only(domain: Domain) -> Json:
    (value,) = options(domain)
    return value
