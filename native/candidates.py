"""Candidates above a score, out of all the boxes and classes a dense detector scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from native.checks import checked_array, checked_threads
from native.dispatch import kernels
from native.rules import Float32, Int64


class Collected(NamedTuple):
    """Candidates of a batch, by image, then by prior, then by class.

    Attributes:
        boxes: (M, 4) float32.
        scores: (M,) float32.
        labels: (M,) int64 in 0..K-1.
        offsets: (N + 1,) int64; image n holds rows ``offsets[n]:offsets[n + 1]``.
    """

    boxes: Float32
    scores: Float32
    labels: Int64
    offsets: Int64


def collect(
    boxes: Float32, scores: Float32, *, threshold: float, threads: int | None = None
) -> Collected:
    """What :func:`native.soft_nms_batch` takes, from what a network gives.

    Args:
        boxes: (N, A, 4) float32, or (N, A, K, 4) where each class has its own box. Those that are
            not finite, as a diverged network gives them, are left out.
        scores: (N, A, K) float32. Not copied as long as the classes of a prior are contiguous, as
            they are in a slice that leaves background out.
        threshold: a score counts if it is strictly above it, in float32; NaN never is.
        threads: most threads to use; None takes the cores granted to this process.

    Raises:
        TypeError: an array has another dtype.
        ValueError: a shape or parameter is not as above.
    """
    if math.isnan(threshold):
        raise ValueError("threshold=nan: must be a number")
    if isinstance(scores, np.ndarray) and scores.ndim == 3 and scores.strides[2] == 4:
        rows_apart = scores.strides[0] % 4 == scores.strides[1] % 4 == 0
    else:
        rows_apart = False
    scores = checked_array("scores", scores, np.float32, ndim=3, contiguous=not rows_apart)
    per_class = isinstance(boxes, np.ndarray) and boxes.ndim == 4
    boxes = checked_array("boxes", boxes, np.float32, ndim=4 if per_class else 3)
    wanted = (*scores.shape, 4) if per_class else (*scores.shape[:2], 4)
    if boxes.shape != wanted:
        raise ValueError(
            f"boxes has shape {boxes.shape} for scores of shape {scores.shape}; it must be "
            f"{(*scores.shape[:2], 4)}, or {(*scores.shape, 4)} with a box for each class"
        )
    return Collected(
        *kernels().collect(boxes, scores, float(np.float32(threshold)), checked_threads(threads))
    )
