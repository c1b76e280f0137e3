"""Refusal of arrays no kernel can work on, in words that say which, where and what is allowed."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from native.dispatch import Kernels, default_threads
from native.rules import INVERTED, LARGEST_COORDINATE, NOT_FINITE, TOO_LARGE, Float32

_Scalar = TypeVar("_Scalar", bound=np.generic)


def checked_array(
    name: str,
    value: npt.NDArray[_Scalar],
    dtype: type[_Scalar],
    *,
    ndim: int,
    contiguous: bool = True,
) -> npt.NDArray[_Scalar]:
    """The array, copied only to make it contiguous.

    Raises:
        TypeError: no array, or of another dtype.
        ValueError: other dimensions.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} is a {type(value).__name__}; it must be a NumPy array")
    wanted = np.dtype(dtype)
    if value.dtype != wanted:
        raise TypeError(
            f"{name} is {value.dtype}; it must be {wanted}: convert with astype(np.{wanted})"
        )
    if value.ndim != ndim:
        raise ValueError(f"{name} has shape {value.shape}; it must have {ndim} dimension(s)")
    return np.ascontiguousarray(value) if contiguous else value


def refuse_bad_boxes(serving: Kernels, name: str, boxes: Float32) -> None:
    """Raise ValueError for the first of (..., 4) boxes not finite, too large or inverted."""
    row, fault = serving.first_bad_box(boxes.reshape(-1, 4))
    if row < 0:
        return
    reason = {
        NOT_FINITE: "is not finite",
        TOO_LARGE: f"has a coordinate beyond {LARGEST_COORDINATE:g}, where areas overflow",
        INVERTED: "is inverted: x1 <= x2 and y1 <= y2 must hold",
    }[fault]
    place = np.unravel_index(row, boxes.shape[:-1])
    where = ", ".join(str(int(index)) for index in place)
    raise ValueError(f"{name}[{where}] = {boxes[place].tolist()} {reason}")


def checked_threads(threads: int | None) -> int:
    """The number of threads asked for, or that granted to the process."""
    if threads is None:
        return default_threads()
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1, or None for the cores granted")
    return threads
