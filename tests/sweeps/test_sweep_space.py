"""Domains, conditions, grids and corners, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from orchestrator.config.schema import Domain
from orchestrator.sweeps.space import (
    corners,
    count_options,
    draw,
    grid,
    index_of,
    option_at,
    options,
    pick,
)

BASE = {"train": {"optimizer": {"name": "sgd", "lr": 0.1}}, "detector": {"name": "ssd"}}


@pytest.mark.parametrize(
    ("domain", "share", "value"),
    [
        (Domain(uniform=(2.0, 4.0)), 0.25, 2.5),
        (Domain(uniform=(0.0, 1.0), step=0.25), 0.999, 1.0),
        (Domain(uniform=(0.0, 1.0), step=0.4), 0.999, 0.8),
        (Domain(loguniform=(1e-4, 1e-2)), 0.5, 1e-3),
        (Domain(integer=(3, 6)), 0.999, 6),
        (Domain(integer=(3, 9), step=2.0), 0.5, 7),
        (Domain(logint=(1, 7)), 0.34, 2),  # 8 ** 0.34 = 2.03
        (Domain(choice=("a", None, True)), 0.5, None),
    ],
)
def test_a_share_of_a_domain(domain: Domain, share: float, value: object) -> None:
    picked = pick(domain, share)
    assert picked == (pytest.approx(value) if isinstance(value, float) else value)
    assert type(picked) is type(value)


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Domain(choice=("a", None, True)), ["a", None, True]),
        (Domain(integer=(3, 6)), [3, 4, 5, 6]),
        (Domain(integer=(3, 9), step=4.0), [3, 7]),
        (Domain(logint=(1, 3)), [1, 2, 3]),
        (Domain(uniform=(0.0, 1.0), step=0.4), [0.0, 0.4, 0.8]),
        (Domain(uniform=(0.0, 0.3), step=0.1), [0.0, 0.1, 0.2, 0.3]),
        # Steps below the six digits that values are written with.
        (Domain(uniform=(100000.0, 100001.0), step=0.5), [100000.0, 100000.0, 100001.0]),
    ],
)
def test_the_options_of_a_domain(domain: Domain, values: list[object]) -> None:
    assert list(options(domain)) == values
    assert count_options(domain) == len(values)
    shares = [index / len(values) + 1e-9 for index in range(len(values))]
    assert domain.logint or [pick(domain, share) for share in shares] == values
    assert [index_of(domain, value) for value in options(domain)] == [
        values.index(value) for value in values
    ]
    with pytest.raises(ValueError, match=r"no option|not in list"):
        index_of(domain, 0.15 if domain.choice is None else "b")


@pytest.mark.parametrize(
    ("domain", "count", "middle"),
    [
        (Domain(integer=(0, 2_000_000_000), step=10.0), 200_000_001, 1_000_000_000),
        (Domain(integer=(0, 2**60)), 2**60 + 1, 2**59),
        (Domain(logint=(1, 2**60)), 2**60, None),
        (Domain(uniform=(0.0, 1.0), step=1e-12), 10**12 + 1, 0.5),
    ],
)
def test_a_domain_of_many_values_lists_none_of_them(
    domain: Domain, count: int, middle: object
) -> None:
    assert count_options(domain) == count
    assert middle is None or pick(domain, 0.5) == middle
    assert next(options(domain)) == option_at(domain, 0)
    last = option_at(domain, count - 1)
    assert option_at(domain, index_of(domain, last)) == last


def test_log_ranges_are_drawn_evenly_by_magnitude() -> None:
    space = {"lr": Domain(loguniform=(1e-4, 1e-1))}
    drawn = [float(draw(space, {}, seed=3, number=n)["lr"]) for n in range(600)]  # type: ignore[arg-type]
    assert all(1e-4 <= value <= 1e-1 for value in drawn)
    for decade in (-4, -3, -2):
        share = sum(decade <= math.log10(value) < decade + 1 for value in drawn) / 600
        # A third each; four standard deviations of a share of 600 draws are 0.077.
        assert share == pytest.approx(1 / 3, abs=0.08)


def test_a_draw_depends_on_seed_number_and_attempt_alone() -> None:
    space = {"a": Domain(uniform=(0.0, 1.0)), "b": Domain(uniform=(0.0, 1.0))}
    first = draw(space, {}, seed=1, number=5)
    assert draw(space, {}, seed=1, number=5) == first
    others = [
        draw(space, {}, seed=2, number=5),
        draw(space, {}, seed=1, number=6),
        draw(space, {}, seed=1, number=5, attempt=1),
    ]
    assert all(other["a"] != first["a"] and other["b"] != first["b"] for other in others)


def test_a_key_is_set_only_where_its_condition_holds() -> None:
    space = {
        "train.optimizer": Domain(choice=({"name": "sgd", "lr": 0.1}, {"name": "adamw"})),
        "train.optimizer.momentum": Domain(choice=(0.0, 0.9), when={"train.optimizer.name": "sgd"}),
        "train.ema": Domain(choice=(1, 2), when={"detector.name": ["m2det", "retinanet"]}),
    }
    found = [list(values.values())[1:] for values in grid(space, BASE)]
    assert found == [[0.0], [0.9], []]


def test_a_grid_changes_its_last_key_fastest() -> None:
    space = {"a": Domain(choice=(1, 2)), "b": Domain(uniform=(0.0, 1.0), step=0.5)}
    assert [tuple(values.values()) for values in grid(space, {})] == [
        (1, 0.0), (1, 0.5), (1, 1.0), (2, 0.0), (2, 0.5), (2, 1.0),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no options"):
        count_options(Domain(uniform=(0.0, 1.0)))


def test_corners_are_all_combinations_of_ends() -> None:
    space = {"a": Domain(loguniform=(0.1, 1.0)), "b": Domain(integer=(1, 5))}
    assert [tuple(values.values()) for values in corners(space, {})] == [
        (0.1, 1), (0.1, 5), (1.0, 1), (1.0, 5),
    ]  # fmt: skip


def test_of_many_corners_every_end_is_seen_beside_the_first_and_the_last() -> None:
    space = {f"k{index}": Domain(integer=(0, 1)) for index in range(20)}
    found = [tuple(values.values()) for values in corners(space, {})]
    assert (0,) * 20 in found
    assert (1,) * 20 in found
    for index in range(20):
        assert tuple(int(i == index) for i in range(20)) in found
        assert tuple(int(i != index) for i in range(20)) in found
    assert len(found) < 100
