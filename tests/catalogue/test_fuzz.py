"""A few examples of every target of ``make fuzz``."""

from __future__ import annotations

import pytest
from fuzz import TARGETS, attempt, damaged


@pytest.mark.parametrize("name", TARGETS)
def test_damage_ends_in_documented_errors(name: str) -> None:
    attempt(name, 10)


def test_damage_is_what_it_says() -> None:
    data = b"0123456789"
    for edit, result in (
        (("insert", 2, 1, b"x"), b"01x23456789"),
        (("replace", 2, 1, b"xy"), b"01xy456789"),
        (("delete", 2, 3, b""), b"0156789"),
        (("repeat", 9, 1, b""), b"012345678" + b"9" * 8),
        (("cut", 4, 1, b""), b"0123"),
        (("flip", 0, 1, b""), b"\xcf123456789"),
    ):
        assert damaged(data, [edit]) == result
