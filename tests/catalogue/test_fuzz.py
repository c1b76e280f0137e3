"""A few examples of every target of ``make fuzz``."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fuzz import TARGETS, damaged, limited


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
def test_damage_ends_in_documented_errors(target: Callable[[], None]) -> None:
    limited(target, 10)()


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
