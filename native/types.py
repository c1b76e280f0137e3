"""Types of the arrays that kernels take, and the refusal of arrays of another kind."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def checked_array(
    name: str,
    value: npt.NDArray[_Scalar],
    dtype: type[_Scalar],
    *,
    ndim: int,
) -> npt.NDArray[_Scalar]:
    """The array, copied only to make it contiguous and its elements aligned.

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
    return np.require(value, requirements=["C", "A", "E"])
