"""Assignment of ground truth to priors without a matrix of their overlaps."""

from __future__ import annotations

from typing import get_args

import numpy as np

from native.dispatch import checked_threads, kernels, refuse_bad_boxes
from native.rules import Claims
from native.types import Bool, Float32, Int64, checked_array


def match_priors(
    boxes: Float32,
    valid: Bool,
    priors: Float32,
    *,
    threshold: float,
    claims: Claims,
    threads: int | None = None,
) -> tuple[Int64, Bool]:
    """The box each prior is responsible for, in every image of a padded batch.

    A prior takes the box of highest IoU, the first on ties. Each box claims its prior of highest
    IoU, the first on ties, whatever the IoU; where two boxes claim one prior, ``claims`` decides.

    Args:
        boxes: (N, G, 4) float32 xyxy; proper boxes, zeros for instance, where not valid.
        valid: (N, G) bool.
        priors: (A, 4) float32 xyxy in the same unit.
        threshold: IoU from which a prior that no box claims is positive, compared in float32.
        claims: ``first``: the earlier box keeps a prior both claim, and the threshold itself is
            negative (SSD of the MindSpore model zoo); ``last``: the later box takes it, and the
            threshold itself is positive (original SSD, M2Det).
        threads: most threads to use; None takes the cores granted to this process.

    Returns:
        (N, A) int64 slot of the box of each prior, 0 in images without boxes, and (N, A) bool
        whether the prior is positive.

    Raises:
        TypeError: an array has another dtype.
        ValueError: a shape, value or parameter is not as above.
    """
    if claims not in get_args(Claims):
        raise ValueError(f"claims={claims!r}: allowed are {', '.join(get_args(Claims))}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold={threshold}: an IoU lies between 0 and 1")
    boxes = checked_array("boxes", boxes, np.float32, ndim=3)
    valid = checked_array("valid", valid, np.bool_, ndim=2)
    priors = checked_array("priors", priors, np.float32, ndim=2)
    for name, array in (("boxes", boxes), ("priors", priors)):
        if array.shape[-1] != 4:
            raise ValueError(f"{name} has shape {array.shape}; its last dimension must be 4, xyxy")
    if valid.shape != boxes.shape[:2]:
        raise ValueError(f"valid has shape {valid.shape} for boxes of shape {boxes.shape}")
    serving = kernels()
    refuse_bad_boxes(serving, "boxes", boxes)
    refuse_bad_boxes(serving, "priors", priors)
    return serving.match_priors(
        boxes,
        valid,
        priors,
        float(np.float32(threshold)),
        get_args(Claims).index(claims),
        checked_threads(threads),
    )
