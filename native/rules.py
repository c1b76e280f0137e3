"""What a suppression call asks for, checked once for every implementation.

Parameters are rounded to float32 here, so that every implementation compares and divides by the
same numbers: an IoU of exactly 3/10 is then not above a threshold of 0.3.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Method = Literal["linear", "gaussian", "hard"]

#: Codes of :func:`native.reference.first_bad_box`.
NOT_FINITE, TOO_LARGE, INVERTED = 1, 2, 3

#: Largest coordinate: beyond it the sum of two areas could overflow float32.
LARGEST_COORDINATE = 1e18


@dataclass(frozen=True)
class Rule:
    """How boxes of one class suppress each other; floats hold values exact in float32.

    Attributes:
        method: 0 linear, 1 gaussian, 2 hard.
        iou_threshold: IoU strictly above which ``linear`` decays and ``hard`` removes.
        sigma: width of the Gaussian decay.
        score_threshold: a score below it removes the box; minus infinity keeps all.
        plus_one: a length is x2 - x1 + 1.
        top_k_per_class: most boxes per class and image that take part, the best.
        max_per_class: most boxes kept per class and image.
        max_total: most boxes kept per image.
    """

    method: int
    iou_threshold: float
    sigma: float
    score_threshold: float
    plus_one: bool
    top_k_per_class: int
    max_per_class: int
    max_total: int


LINEAR, GAUSSIAN, HARD = range(3)

Claims = Literal["first", "last"]
FIRST, LAST = range(2)

_NO_CAP = int(np.iinfo(np.int64).max)


def make_rule(
    *,
    method: str,
    iou_threshold: float,
    sigma: float,
    score_threshold: float | None,
    plus_one: bool,
    top_k_per_class: int | None,
    max_per_class: int | None,
    max_total: int | None,
) -> Rule:
    """A rule from a caller's parameters.

    Raises:
        ValueError: a parameter is outside its range; the message says which and what is allowed.
    """
    methods = get_args(Method)
    if method not in methods:
        close = difflib.get_close_matches(str(method), methods, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"method={method!r}: allowed are {', '.join(methods)}{hint}")
    if not 0.0 <= iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold={iou_threshold}: an IoU lies between 0 and 1")
    if not (math.isfinite(sigma) and np.float32(sigma) > 0):
        raise ValueError(f"sigma={sigma}: must be a finite float32 above 0; 0.5 is usual")
    if score_threshold is not None and not 0.0 <= score_threshold < math.inf:
        raise ValueError(f"score_threshold={score_threshold}: must be finite and not below 0")
    return Rule(
        method=methods.index(method),
        iou_threshold=float(np.float32(iou_threshold)),
        sigma=float(np.float32(sigma)),
        score_threshold=-math.inf
        if score_threshold is None
        else float(np.float32(score_threshold)),
        plus_one=bool(plus_one),
        top_k_per_class=_cap("top_k_per_class", top_k_per_class),
        max_per_class=_cap("max_per_class", max_per_class),
        max_total=_cap("max_total", max_total),
    )


def _cap(name: str, value: int | None) -> int:
    if value is None:
        return _NO_CAP
    if value < 1:
        raise ValueError(f"{name}={value}: must be at least 1, or None for no limit")
    return int(value)
