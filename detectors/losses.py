"""Loss terms shared by the detectors; what to sum and what to divide by is theirs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sigmoid_focal(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss on independent sigmoids (Lin et al., ICCV 2017, eq. 5).

    With ``z`` the logit, its sign turned in the target channel, an element is
    ``alpha_t * sigmoid(z)**gamma * softplus(z)``: the modulating factor ``1 - p_t`` and the cross
    entropy ``-log p_t``, both without cancellation and with finite gradients for any logit.

    Args:
        logits: (..., C).
        labels: (...) int64 target channel in 0..C-1; a label outside marks no channel.
        alpha: weight of the target channel; the others weigh ``1 - alpha``.
        gamma: focusing exponent, not negative.

    Returns:
        (..., C) loss of each element.
    """
    channels = torch.arange(logits.shape[-1], device=logits.device)
    target = labels.unsqueeze(-1) == channels
    z = torch.where(target, -logits, logits)
    cross_entropy = F.softplus(z)
    modulation = ((z - cross_entropy) * gamma).exp()
    return torch.where(target, alpha, 1 - alpha) * modulation * cross_entropy


def positive_smooth_l1(
    predicted: Tensor, wanted: Tensor, positive: Tensor, *, beta: float = 1.0
) -> Tensor:
    """Smooth-L1 of the offsets of positive priors (Girshick, ICCV 2015, eq. 3, at ``beta`` 1).

    Args:
        predicted: (N, A, 4).
        wanted: (N, A, 4), finite everywhere.
        positive: (N, A) bool.
        beta: where the quadratic part ends.

    Returns:
        (N, A) sum over the four offsets, 0 where not positive.
    """
    each = F.smooth_l1_loss(predicted, wanted, reduction="none", beta=beta).sum(-1)
    return torch.where(positive, each, 0.0)


def mined_cross_entropy(logits: Tensor, labels: Tensor, *, negative_ratio: float) -> Tensor:
    """Softmax cross entropy of the positives and of the hardest negatives of each image.

    An image contributes its ``negative_ratio`` times as many negatives as it has positives, those
    of largest loss, the first on ties; all of them if it has fewer. An image without positives
    contributes nothing. (Liu et al., ECCV 2016, section 2.2.)

    Args:
        logits: (N, A, 1 + K), background first.
        labels: (N, A) int64 channel, 0 where negative.
        negative_ratio: negatives per positive.

    Returns:
        (N, A) loss, 0 where not selected.
    """
    # As rows: the (N, C, A) form of this function has no deterministic CUDA kernel.
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    each = each.view_as(labels)
    positive = labels > 0
    wanted = (positive.sum(1, keepdim=True) * negative_ratio).long()
    hardest_first = (
        each.detach()
        .masked_fill(positive, -torch.inf)
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    within = torch.arange(labels.shape[1], device=labels.device) < wanted
    chosen = torch.zeros_like(positive).scatter(1, hardest_first, within)
    return torch.where(positive | chosen, each, 0.0)
