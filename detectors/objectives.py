"""Two ways to train single-shot detectors: what is positive, what errors cost, what a score is.

Class logits are (N, A, 1 + K) with background first; labels (N, A) are channels, 0 for background.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

from pydantic import Field
from torch import Tensor

from detectors.losses import mined_cross_entropy, sigmoid_focal
from detectors.settings import Settings
from native import Claims


class FocalLossConfig(Settings):
    """Sigmoid focal loss and the matching that goes with it (MindSpore SSD).

    Attributes:
        name: selects this loss.
        match_threshold: a prior is positive if its IoU with a box is strictly above this.
        alpha: weight of the target channel; every other channel weighs ``1 - alpha``.
        gamma: focusing exponent; 0 is plain binary cross entropy.
        loc_reduction: smooth-L1 of a prior is the sum of its four coordinates (mindspore-ai/models
            since 2021) or their mean (model_zoo before).
    """

    name: Literal["focal"] = "focal"
    match_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = 0.75
    gamma: Annotated[float, Field(ge=0.0)] = 2.0
    loc_reduction: Literal["sum", "mean"] = "sum"


class MultiBoxLossConfig(Settings):
    """Softmax cross entropy with hard-negative mining and its matching (the original SSD).

    Attributes:
        name: selects this loss.
        match_threshold: a prior is positive if its IoU with a box is at least this.
        negative_ratio: negatives per positive in each image.
    """

    name: Literal["multibox"] = "multibox"
    match_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    negative_ratio: Annotated[float, Field(gt=0.0)] = 3.0


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

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Scalar sum over the batch."""
        ...

    def scores(self, logits: Tensor) -> Tensor:
        """(N, A, K) scores of the foreground classes."""
        ...


class FocalObjective:
    """Every prior counts, easy ones little; each channel, background too, is a sigmoid."""

    claims: Claims = "first"

    def __init__(self, config: FocalLossConfig) -> None:
        self.config = config
        self.match_threshold = config.match_threshold
        self.loc_weight = 0.25 if config.loc_reduction == "mean" else 1.0

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Focal loss over all priors and channels."""
        alpha, gamma = self.config.alpha, self.config.gamma
        return sigmoid_focal(logits, labels, alpha=alpha, gamma=gamma).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Sigmoid of each foreground channel."""
        return logits[..., 1:].sigmoid()


class MultiBoxObjective:
    """Softmax over all classes; the hardest negatives only, a fixed number for each positive."""

    claims: Claims = "last"
    loc_weight = 1.0

    def __init__(self, config: MultiBoxLossConfig) -> None:
        self.config = config
        self.match_threshold = config.match_threshold

    def classification(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy over positives and mined negatives."""
        ratio = self.config.negative_ratio
        return mined_cross_entropy(logits, labels, negative_ratio=ratio).sum()

    def scores(self, logits: Tensor) -> Tensor:
        """Softmax, background left out."""
        return logits.softmax(-1)[..., 1:]


def make_objective(config: FocalLossConfig | MultiBoxLossConfig) -> Objective:
    """The objective a configuration asks for."""
    if isinstance(config, FocalLossConfig):
        return FocalObjective(config)
    return MultiBoxObjective(config)
