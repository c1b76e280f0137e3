"""The space of a sweep: drawing from it, counting through it, and its corners.

Every draw is a pure function of the sweep's seed and the trial's number, so that the plan of a
sweep needs no memory and trials can be added to one that is finished.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from orchestrator.config.scalars import Json
from orchestrator.config.schema import Domain
from orchestrator.config.shape import step_into
from orchestrator.data import counter_rng

Space: TypeAlias = Mapping[str, Domain]
#: What a trial sets, by dotted key, in the order of the space.
Values: TypeAlias = dict[str, Json]

#: Corners are looked at one by one up to this many; see :func:`corners`.
_MOST_CORNERS = 128
#: Values of one key, above which a space is not taken to be finite.
_MOST_OPTIONS = 10_000


def assign(space: Space, base: Json, choose: Callable[[str, Domain], Json]) -> Values:
    """Choose a value for every key whose condition holds.

    Args:
        space: of the sweep.
        base: tree of the experiment, which conditions see where the sweep sets nothing.
        choose: called with each such key and its domain, in order.
    """
    values: Values = {}
    for key, domain in space.items():
        if all(holds(look_up(on, values, base), want) for on, want in domain.when.items()):
            values[key] = choose(key, domain)
    return values


def holds(value: Json, wanted: object) -> bool:
    """Whether a value is the one that a condition asks for, or one of its list."""
    wants = wanted if isinstance(wanted, list | tuple) else (wanted,)
    # Python takes true for 1 and false for 0.
    return any(
        value == want and isinstance(value, bool) == isinstance(want, bool) for want in wants
    )


def look_up(key: str, values: Values, base: Json) -> Json:
    """The value at ``key``, also where the sweep sets a section around it."""
    tree: Json = base
    parts = key.split(".")
    for length in range(1, len(parts) + 1):
        prefix = ".".join(parts[:length])
        tree = values[prefix] if prefix in values else step_into(tree, parts[length - 1])
    return tree


def draw(space: Space, base: Json, *, seed: int, number: int, attempt: int = 0) -> Values:
    """Values of one trial at random.

    Args:
        space: of the sweep.
        base: tree of the experiment.
        seed: of the sweep.
        number: of the trial.
        attempt: another one gives other values.
    """
    words = counter_rng.words(
        seed, counter_rng.Domain.SWEEP, epoch=attempt, sample=number, count=max(1, len(space))
    )
    shares = {key: int(word) / 2**64 for key, word in zip(space, words, strict=False)}
    return assign(space, base, lambda key, domain: pick(domain, shares[key]))


def pick(domain: Domain, share: float) -> Json:
    """The value at ``share``, 0 <= share < 1, of a domain."""
    if domain.choice is not None or domain.step is not None:
        return option_at(domain, int(share * count_options(domain)))
    if domain.integer is not None:
        low, high = domain.integer
        return low + int(share * (high - low + 1))
    if domain.logint is not None:
        low, high = domain.logint
        return min(high, int(low * ((high + 1) / low) ** share))
    if domain.loguniform is not None:
        least, most = domain.loguniform
        return inside(domain, least * (most / least) ** share)
    assert domain.uniform is not None
    least, most = domain.uniform
    return inside(domain, least + (most - least) * share)


def inside(domain: Domain, value: float) -> float:
    """``value`` with six digits, which people can read and copy, inside the range."""
    assert domain.ends is not None
    return min(max(float(f"{value:.6g}"), float(domain.ends[0])), float(domain.ends[1]))


def is_countable(domain: Domain) -> bool:
    """Whether a domain is not a continuous range."""
    return domain.loguniform is None and (domain.uniform is None or domain.step is not None)


def count_options(domain: Domain) -> int:
    """How many values a domain has.

    Raises:
        ValueError: it is a continuous range.
    """
    if domain.choice is not None:
        return len(domain.choice)
    if whole := domain.integer or domain.logint:
        return (whole[1] - whole[0]) // int(domain.step or 1) + 1
    if domain.uniform is not None and domain.step is not None:
        least, most = domain.uniform
        return math.floor((most - least) / domain.step + 1e-9) + 1
    raise ValueError(f"a {domain.kind} range has no options to count")


def option_at(domain: Domain, index: int) -> Json:
    """One value of a countable domain.

    Args:
        domain: it belongs to.
        index: below :func:`count_options`.
    """
    if domain.choice is not None:
        return _plain(domain.choice[index])
    if whole := domain.integer or domain.logint:
        return whole[0] + index * int(domain.step or 1)
    assert domain.uniform is not None
    assert domain.step is not None
    return inside(domain, domain.uniform[0] + index * domain.step)


def options(domain: Domain) -> Iterator[Json]:
    """The values of a countable domain, one by one: there may be more than memory holds."""
    return (option_at(domain, index) for index in range(count_options(domain)))


def index_of(domain: Domain, value: Json) -> int:
    """The first place at which a countable domain has ``value``.

    Raises:
        ValueError: nowhere.
    """
    if domain.choice is not None:
        return list(options(domain)).index(value)
    count = count_options(domain)
    # Rounding lets no value be less than the one before it.
    index = bisect_left(range(count), True, key=lambda at: option_at(domain, at) >= value)  # type: ignore[operator]
    if index == count or option_at(domain, index) != value:
        raise ValueError(f"{value!r} is no option of the {domain.kind} range")
    return index


def is_finite(space: Space) -> bool:
    """Whether every key has a number of values that can be gone through."""
    return all(
        is_countable(domain) and count_options(domain) <= _MOST_OPTIONS for domain in space.values()
    )


def _plain(value: object) -> Json:
    """JSON as the configuration layer has it: lists, not tuples."""
    if isinstance(value, dict):
        return {str(key): _plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(child) for child in value]
    assert value is None or isinstance(value, bool | int | float | str)
    return value


def grid(space: Space, base: Json) -> Iterator[Values]:
    """Every combination, the last key changing fastest."""
    return combinations(space, base, lambda _, domain: options(domain))


def extremes(domain: Domain) -> list[Json]:
    """What a range or choice may be at worst: its ends, or every one of its values."""
    if domain.ends is None:
        return list(options(domain))
    if domain.integer is not None or domain.logint is not None:
        low, high = domain.integer or domain.logint or (0, 0)
        return [low, high]
    return [float(end) for end in domain.ends]


def corners(space: Space, base: Json) -> Iterator[Values]:
    """Combinations of extremes.

    All of them while they are at most 128; of more, those in which every key has its first
    extreme, every key its last, and one key at a time any of its others.
    """
    every = combinations(space, base, lambda _, domain: extremes(domain))
    found = list(itertools.islice(every, _MOST_CORNERS + 1))
    if len(found) <= _MOST_CORNERS:
        yield from found
        return
    for place in (0, -1):
        yield assign(space, base, _all_at(place))
        for varied in space:
            for value in extremes(space[varied]):
                yield assign(space, base, _all_at(place, {varied: value}))


def _all_at(place: int, but: Values | None = None) -> Callable[[str, Domain], Json]:
    """Chooses the first or the last extreme of every key, apart from some."""
    fixed = but or {}
    return lambda key, domain: fixed[key] if key in fixed else extremes(domain)[place]


def combinations(
    space: Space, base: Json, values_of: Callable[[str, Domain], Iterable[Json]]
) -> Iterator[Values]:
    """Every combination of some values of each key.

    Depth first, so that a key whose condition does not hold does not multiply anything.

    Args:
        space: of the sweep.
        base: tree of the experiment.
        values_of: the values of a key to be combined.
    """
    keys = list(space)

    def below(position: int, values: Values) -> Iterator[Values]:
        if position == len(keys):
            yield dict(values)
            return
        key = keys[position]
        domain = space[key]
        if not all(holds(look_up(on, values, base), want) for on, want in domain.when.items()):
            yield from below(position + 1, values)
            return
        for value in values_of(key, domain):
            yield from below(position + 1, {**values, key: value})

    return below(0, {})
