"""Two ways to train single-shot detectors: what is positive, what errors cost, what a score is.

Class logits are (N, A, 1 + K) with background first; labels (N, A) are channels, 0 for background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from detectors.config import FocalLossConfig, MultiBoxLossConfig
from detectors.losses import mined_cross_entropy, sigmoid_focal
from native import Claims


class Objective(Protocol):
    """What the networks of the family leave open.

    Attributes:
        claims: which of two boxes gets a prior that is the best of both; see
            :func:`detectors.matching.match_boxes`.
        match_threshold: IoU from which a prior that no box claims is positive.
        loc_weight: factor on the box loss.
    """

    claims: Claims
    match_threshold: float
    loc_weight: float

    def classification(self, logits: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
        """Scalar sum over the batch; ``factors`` (N, A) weigh the priors, None for 1."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """(N, A, K) scores of the foreground classes."""
        ...

    def begin(self, biases: Sequence[Tensor], channels: int) -> None:
        """Set the biases of the last layers, whose outputs are all channels of prior after prior.

        Left as they are where the configuration says nothing.
        """
        ...


class FocalObjective:
    """Every prior counts, easy ones little; each channel, background too, is a sigmoid."""

    claims: Claims = "first"

    def __init__(self, config: FocalLossConfig) -> None:
        self.config = config
        self.match_threshold = config.match_threshold
        self.loc_weight = 0.25 if config.loc_reduction == "mean" else 1.0

    def classification(self, logits: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
        """Focal loss over all priors and channels."""
        alpha, gamma = self.config.alpha, self.config.gamma
        each = sigmoid_focal(logits, labels, alpha=alpha, gamma=gamma)
        return (each if factors is None else each * factors.unsqueeze(-1)).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Sigmoid of each foreground channel."""
        return logits[..., 1:].sigmoid()

    @torch.no_grad()
    def begin(self, biases: Sequence[Tensor], channels: int) -> None:
        """A class begins with ``prior_score``, the background with 1 minus it."""
        score = self.config.prior_score
        if score is None:
            return
        logit = math.log(score / (1.0 - score))
        for bias in biases:
            rows = bias.view(-1, channels)
            rows[:, 0], rows[:, 1:] = -logit, logit


class MultiBoxObjective:
    """Softmax over all classes; the hardest negatives only, a fixed number for each positive."""

    claims: Claims = "last"
    loc_weight = 1.0

    def __init__(self, config: MultiBoxLossConfig) -> None:
        self.config = config
        self.match_threshold = config.match_threshold

    def classification(self, logits: Tensor, labels: Tensor, factors: Tensor | None) -> Tensor:
        """Cross entropy over positives and mined negatives."""
        ratio = self.config.negative_ratio
        each = mined_cross_entropy(logits, labels, negative_ratio=ratio)
        return (each if factors is None else each * factors).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Softmax, background left out."""
        return logits.softmax(-1)[..., 1:]

    def begin(self, biases: Sequence[Tensor], channels: int) -> None:
        """The hardest negatives alone count, so the background does not swamp the first steps."""


def make_objective(config: FocalLossConfig | MultiBoxLossConfig) -> Objective:
    """The objective a configuration asks for."""
    if isinstance(config, FocalLossConfig):
        return FocalObjective(config)
    return MultiBoxObjective(config)
