"""What SSD and its kin share: priors, assignment, losses and decoding (Liu et al., ECCV 2016)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from detectors.base import Detector
from detectors.boxes import swap_axes, to_centers, to_corners
from detectors.coding import decode, encode
from detectors.losses import positive_smooth_l1
from detectors.matching import match_boxes, take_boxes, with_a_slot
from detectors.objectives import Objective
from detectors.structures import Candidates, LossTerm, Targets


class DenseDetector(Detector):
    """Offsets and class logits at fixed priors, learnt from without choosing among them first."""

    weighs_classes = True

    @abstractmethod
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to offsets (N, A, 4) and class logits (N, A, channels)."""

    @abstractmethod
    def terms_of(self, raw: dict[str, Tensor], targets: Targets) -> dict[str, LossTerm]:
        """What :meth:`loss_terms` makes of raw outputs."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            images: (N, 3, H, W) RGB on the 0..255 scale, uint8 or float.

        Returns:
            ``loc`` (N, A, 4) offsets and ``cls`` (N, A, channels) logits, float32 whatever the
            precision inside.

        Raises:
            ValueError: images of another size, for which the priors would not fit.
        """
        loc, cls = self.predict(self.normalize(images))
        return {"loc": loc.float(), "cls": cls.float()}

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        """``cls`` and ``loc``, each to be divided by the positive priors."""
        return self.terms_of(self(images), targets)


class SingleShot(DenseDetector):
    """Dense prediction with a background channel, as in SSD.

    Channel 0 of the class logits is background; class k of the data is channel k + 1. The losses
    of a batch are divided by its number of positive priors, or by 1 if it has none.

    Args:
        size: height and width of the input.
        num_classes: foreground classes.
        pixel_mean, pixel_std: on the 0..255 scale, RGB.
        priors: (A, 4) float64 centre form, x first, relative to the input size.
        objective: matching and classification.
        title: what the network calls itself.

    Attributes:
        y_first: whether priors and raw offsets hold y before x, as the published weights expect.
        cut_boxes: whether decoded boxes are cut to the image.
    """

    y_first: ClassVar[bool] = False
    cut_boxes: ClassVar[bool] = True

    priors: Tensor
    prior_corners: Tensor
    pixels: Tensor

    def __init__(
        self,
        *,
        size: int,
        num_classes: int,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        priors: Tensor,
        objective: Objective,
        title: str,
    ) -> None:
        super().__init__(
            title=title,
            input_size=(size, size),
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.objective = objective
        constants = {
            "priors": swap_axes(priors) if self.y_first else priors,
            "prior_corners": to_corners(priors),
            "pixels": torch.tensor([size] * 4),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)

    def prior_boxes(self) -> Tensor:
        """(A, 4) float32 xyxy pixels of the input."""
        return (self.prior_corners * self.pixels).float()

    def terms_of(self, raw: dict[str, Tensor], targets: Targets) -> dict[str, LossTerm]:
        """``cls`` and ``loc``; both count all positive priors."""
        wanted, labels = self.assign(targets)
        positive = labels > 0
        count = positive.sum()
        loc = positive_smooth_l1(raw["loc"], wanted, positive).sum()
        factors = self.class_factors(labels - 1)
        cls = self.objective.classification(raw["cls"], labels, factors)
        return {
            "cls": LossTerm(cls, count),
            "loc": LossTerm(loc * self.objective.loc_weight, count),
        }

    @torch.no_grad()
    def loss_divisors(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Positive priors, which follow from the boxes."""
        _, labels = self.assign(targets)
        count = (labels > 0).sum()
        return {"cls": count, "loc": count}

    def assign(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """What each prior should predict.

        Returns:
            (N, A, 4) offsets, zeros where not positive, and (N, A) channel, 0 where not positive.
        """
        targets = with_a_slot(targets)
        boxes = targets.boxes / self.pixels
        match = match_boxes(
            boxes,
            targets.valid,
            self.prior_corners,
            threshold=self.objective.match_threshold,
            claims=self.objective.claims,
        )
        # Converted before they are taken: there are far fewer boxes than priors.
        centers = to_centers(swap_axes(boxes) if self.y_first else boxes)
        centers, labels = take_boxes(targets._replace(boxes=centers), match)
        return (
            torch.where(match.positive.unsqueeze(-1), encode(centers, self.priors), 0.0),
            torch.where(match.positive, labels + 1, 0),
        )

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Boxes (N, A, 4), cut to the image where the recipe does, and scores (N, A, K)."""
        corners = to_corners(decode(raw["loc"], self.priors))
        corners = corners.clamp(0, 1) if self.cut_boxes else corners
        boxes = swap_axes(corners) if self.y_first else corners
        return Candidates(boxes=boxes * self.pixels, scores=self.objective.scores(raw["cls"]))


def flatten_cells(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Predictor outputs (N, boxes * columns, H, W) to rows (N, A, columns), cell by cell."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, columns) for m in maps], dim=1)
