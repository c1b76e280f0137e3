"""Coordinates in text, as exact decimals.

Formats differ in where zero is and in what they divide by. In binary, 0.1 + 1 - 1 is not 0.1, so a
box that went through two formats would no longer be the same; in decimal it is.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal, InvalidOperation, Overflow

#: Sums, differences and products of any two numbers accepted here are exact.
EXACT = Context(prec=2500, Emax=10_000, Emin=-10_000, traps=[InvalidOperation, Overflow])
#: As in :mod:`orchestrator.data.readers.coco_tables`: beyond it, products of two sides overflow.
LARGEST = Decimal("1e150")

_MAX_CHARACTERS = 400
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NOT_FINITE = frozenset(("nan", "inf", "infinity"))


def number(name: str, text: str) -> Decimal:
    """The finite number that ``text`` is.

    Raises:
        ValueError: it is none; the message begins with ``name``.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{name} has {len(text)} characters, expected a number")
    if _NUMBER.fullmatch(text) is None:
        expected = "a finite number" if text.lstrip("+-").lower() in _NOT_FINITE else "a number"
        raise ValueError(f"{name} is {shown(text)}, expected {expected}")
    value = Decimal(text)
    if abs(value) > LARGEST:
        raise ValueError(f"{name} is {shown(text)}, expected a number of at most {LARGEST}")
    return value


def integer(name: str, text: str, *, low: int, high: int) -> int:
    """The whole number within [low, high] that ``text`` is.

    Raises:
        ValueError: it is none; the message begins with ``name``.
    """
    if _INTEGER.fullmatch(text) is None:
        raise ValueError(f"{name} is {shown(text)}, expected a whole number")
    value = int(text)
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, allowed is {low}..{high}")
    return value


def exact(value: float) -> Decimal:
    """The shortest decimal that is read back as ``value``."""
    return Decimal(repr(value + 0.0))


def plain(value: Decimal) -> str:
    """``value`` as text, without exponent and trailing zeros."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def shown(text: str) -> str:
    """Foreign text as a message shows it: quoted, escaped and cut."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
