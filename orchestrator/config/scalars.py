"""What an unquoted scalar means, and how a value is written so that it means the same again.

The rules are the core schema of YAML 1.2.2 (section 10.3.2), so ``1e-3`` is a number and ``no``,
``on`` and ``12:30:45`` are text, with one restriction: what other readers would take for
another value is refused rather than guessed. That is a number with a superfluous leading zero
(``010`` is 8 to YAML 1.1 and 10 to YAML 1.2), infinity, NaN and whole numbers beyond 64 bits.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeAlias

import yaml

from orchestrator.credentials import mask

Scalar: TypeAlias = bool | int | float | str | None
Json: TypeAlias = "Scalar | list[Json] | dict[str, Json]"

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_BASED = {"0o": (re.compile(r"0o[0-7]+"), 8), "0x": (re.compile(r"0x[0-9a-fA-F]+"), 16)}
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INT_BOUND = 1 << 63

#: Text that needs no quotes in block or flow context, whatever its neighbours.
_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./+@-]*")
#: What JSON leaves as it is and YAML does not allow, or takes for a line break.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_YAML_1_1: Any = yaml.resolver.Resolver()


class ScalarError(ValueError):
    """A scalar that is refused; the message says why and what to write instead."""


def resolve_plain(text: str, *, expanded: bool = False) -> Scalar:
    """The value of an unquoted scalar.

    Args:
        text: of it.
        expanded: whether something expands a ``${…}`` in it.

    Raises:
        ScalarError: readers disagree about it, or no field could hold it.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ScalarError(f"found {text}, and every number must be finite; write a finite number")
    if _LEADING_ZERO.fullmatch(text):
        raise ScalarError(
            f"found {text}, and a leading zero means octal to some readers; write the number "
            "without it, 0o… for octal, or quotes around text"
        )
    if _INT.fullmatch(text):
        return _bounded(text, 10)
    based, base = _BASED.get(text[:2], (None, 0))
    if based is not None and based.fullmatch(text):
        return _bounded(text[2:], base)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ScalarError(
                f"found {shorten(text)}, which is too large for a 64-bit float; the largest is "
                "about 1.8e308"
            )
        return number
    return check_text(text, expanded=expanded)


def _bounded(digits: str, base: int) -> int:
    # 64 digits hold every 64-bit number in base 8 and more; int() is quadratic in its input.
    number = int(digits, base) if len(digits) <= 64 else _INT_BOUND
    if not -_INT_BOUND <= number < _INT_BOUND:
        raise ScalarError(
            f"found {shorten(digits)}, which does not fit 64 bits; whole numbers go from "
            "-2^63 to 2^63 - 1"
        )
    return number


def check_text(text: str, *, expanded: bool = False) -> str:
    """``text`` itself, if a field can hold it.

    Args:
        text: of a scalar.
        expanded: whether something expands a ``${…}`` in it.

    Raises:
        ScalarError: it holds NUL, half of a surrogate pair, or a ``${…}`` that nothing expands.
    """
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise ScalarError("found a character that is no text (NUL or a lone surrogate)")
    if "${" in text and not expanded:
        raise ScalarError(
            f"found {quoted(shorten(text))}, and nothing expands ${{…}}; write the value itself, "
            "or give it as an override"
        )
    return text


def shorten(text: str, width: int = 60) -> str:
    """``text`` for a message: one line, at most ``width`` long, addresses without credentials."""
    text = mask(text)
    text = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)
    return text if len(text) <= width else text[: width - 1] + "…"


def quoted(text: str) -> str:
    """``text`` as a double-quoted YAML scalar on one line."""
    escaped = json.dumps(text, ensure_ascii=False)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)


def scalar_text(value: Scalar) -> str:
    """``value`` as YAML that reads back as the same value, here and under YAML 1.1."""
    if isinstance(value, str):
        return value if _reads_as_text(value) else quoted(value)
    if isinstance(value, float):
        mantissa, e, exponent = repr(value).partition("e")
        return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent
    return json.dumps(value)


def _reads_as_text(text: str) -> bool:
    if not _PLAIN.fullmatch(text):
        return False
    try:
        same = resolve_plain(text) == text
    except ScalarError:
        return False
    old = _YAML_1_1.resolve(yaml.ScalarNode, text, (True, False))
    return same and bool(old == "tag:yaml.org,2002:str")
