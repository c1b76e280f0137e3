"""Sizes and counts as cluster files write them."""

from __future__ import annotations

import math
import re

_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50}
_DECIMAL = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_QUANTITY = re.compile(r"((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][0-9]+)?)(m|[kMGTP]|[KMGTP]i)?")
_COMPOSE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([bkmgt]?)b?", re.IGNORECASE)
_POWERS = {"": 0, "b": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class QuantityError(ValueError):
    """Text that is no quantity."""


def amount(text: int | float | str) -> float:
    """A quantity of Kubernetes as a number: CPUs, devices or bytes.

    Raises:
        QuantityError: it is none.
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None or not math.isfinite(float(found[1])):
        raise QuantityError(
            f"found {text!r}, allowed is a number with one of the units m, k, M, G, T, Ki, Mi, "
            "Gi, Ti or none"
        )
    number = float(found[1])
    unit = found[2]
    return number / 1000 if unit == "m" else number * {**_BINARY, **_DECIMAL}.get(unit or "", 1)


def amount_or_none(text: int | float | str) -> float | None:
    """A quantity of Kubernetes as a number; None for what is none."""
    try:
        return amount(text)
    except QuantityError:
        return None


def compose_bytes(text: str) -> float:
    """A size of Docker as bytes: ``8gb`` and ``8g`` are 8 GiB.

    Raises:
        QuantityError: it is none.
    """
    found = _COMPOSE.fullmatch(text)
    if found is None or not math.isfinite(float(found[1])):
        raise QuantityError(
            f"found {text!r}, allowed is a number with one of the units b, k, m, g or t"
        )
    return float(found[1]) * float(1024 ** _POWERS[found[2].lower()])


def gib(number: float) -> str:
    """Bytes for a message."""
    return f"{number / (1 << 30):g} GiB"
