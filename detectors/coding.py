"""Box offsets relative to priors, in the parametrisation of Girshick et al. (CVPR 2014), eq. 6-9.

All boxes are in centre form (see :mod:`detectors.boxes`); the offsets keep its axis order.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Divisors of centre and size offsets in SSD and its descendants.
SSD_VARIANCES = (0.1, 0.2)


def encode(
    boxes: Tensor, priors: Tensor, *, variances: tuple[float, float] = SSD_VARIANCES
) -> Tensor:
    """Offsets that lead from priors to boxes.

    Args:
        boxes: (..., A, 4) centre form.
        priors: (A, 4) centre form, same axis order, positive sizes.
        variances: divisors of centre and size offsets.

    Returns:
        (..., A, 4) offsets.
    """
    centers = (boxes[..., :2] - priors[..., :2]) / (priors[..., 2:] * variances[0])
    # The floor keeps boxes without area finite.
    ratios = (boxes[..., 2:] / priors[..., 2:]).clamp(min=1e-6)
    return torch.cat([centers, ratios.log() / variances[1]], dim=-1)


def decode(
    offsets: Tensor,
    priors: Tensor,
    *,
    variances: tuple[float, float] = SSD_VARIANCES,
    log_ratios: tuple[float, float] | None = None,
) -> Tensor:
    """Inverse of :func:`encode`: (..., A, 4) offsets to (..., A, 4) boxes in centre form.

    Args:
        offsets: (..., A, 4).
        priors: (..., A, 4) centre form.
        variances: factors on centre and size offsets.
        log_ratios: bounds of the logarithm of size / prior size; None for no bounds.
    """
    centers = offsets[..., :2] * variances[0] * priors[..., 2:] + priors[..., :2]
    logs = offsets[..., 2:] * variances[1]
    if log_ratios is not None:
        logs = logs.clamp(*log_ratios)
    return torch.cat([centers, logs.exp() * priors[..., 2:]], dim=-1)
