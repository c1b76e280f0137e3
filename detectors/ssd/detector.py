"""What all SSD networks share: priors, assignment, losses and decoding (Liu et al., ECCV 2016)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from detectors.base import Candidates, Detector, Targets
from detectors.boxes import pairwise_iou, swap_axes, to_centers, to_corners
from detectors.coding import decode, encode
from detectors.losses import positive_smooth_l1
from detectors.matching import take_boxes, with_a_slot
from detectors.priors import Level, grid_boxes
from detectors.ssd.objective import Objective


class SSD(Detector):
    """Dense prediction of offsets and classes at fixed priors.

    Channel 0 of the class logits is background; class k of the data is channel k + 1. The losses
    of a batch are divided by its number of positive priors, or by 1 if it has none.

    Args:
        size: height and width of the input.
        num_classes: foreground classes.
        pixel_mean, pixel_std: on the 0..255 scale, RGB.
        levels: priors, relative to the input size.
        objective: matching and classification.
        title: what the network calls itself.

    Attributes:
        y_first: whether priors and raw offsets hold y before x, as the published weights expect.
    """

    y_first: ClassVar[bool] = False

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
        levels: Sequence[Level],
        objective: Objective,
        title: str,
    ) -> None:
        super().__init__(
            input_size=(size, size),
            num_classes=num_classes,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.title = title
        self.objective = objective
        boxes = grid_boxes(levels)
        constants = {
            "priors": swap_axes(boxes) if self.y_first else boxes,
            "prior_corners": to_corners(boxes),
            "pixels": torch.tensor([size] * 4),
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)

    def extra_repr(self) -> str:
        """Title and number of classes, shown at the top of the printed module."""
        return f"{self.title}, num_classes={self.num_classes}"

    @abstractmethod
    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to offsets (N, A, 4) and class logits (N, A, 1 + K)."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs.

        Args:
            images: (N, 3, H, W) RGB on the 0..255 scale, uint8 or float.

        Returns:
            ``loc`` (N, A, 4) offsets and ``cls`` (N, A, 1 + K) logits, float32 whatever the
            precision inside.

        Raises:
            ValueError: images of another size, for which the priors would not fit.
        """
        if images.shape[-2:] != self.input_size:
            height, width = self.input_size
            raise ValueError(
                f"{self.title} takes images of {height} x {width} pixels, got a batch of shape "
                f"{tuple(images.shape)}; resize before the network"
            )
        loc, cls = self.predict(self.normalize(images))
        return {"loc": loc.float(), "cls": cls.float()}

    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """``cls`` and ``loc``, each summed over the batch and divided by its positive priors."""
        return self.losses_of(self(images), targets)

    def losses_of(self, raw: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The losses of :meth:`loss` for raw outputs already computed."""
        wanted, labels = self.assign(targets)
        positive = labels > 0
        count = positive.sum().clamp(min=1)
        loc = positive_smooth_l1(raw["loc"], wanted, positive).sum()
        cls = self.objective.classification(raw["cls"], labels)
        return {"cls": cls / count, "loc": loc * self.objective.loc_weight / count}

    def assign(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """What each prior should predict.

        Returns:
            (N, A, 4) offsets, zeros where not positive, and (N, A) channel, 0 where not positive.
        """
        targets = with_a_slot(targets)
        relative = targets._replace(boxes=targets.boxes / self.pixels)
        iou = pairwise_iou(relative.boxes, self.prior_corners)
        match = self.objective.match(iou, targets.valid)
        boxes, labels = take_boxes(relative, match)
        centers = to_centers(swap_axes(boxes) if self.y_first else boxes)
        return (
            torch.where(match.positive.unsqueeze(-1), encode(centers, self.priors), 0.0),
            torch.where(match.positive, labels + 1, 0),
        )

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Boxes (N, A, 4), cut to the image, and scores (N, A, K)."""
        corners = to_corners(decode(raw["loc"], self.priors)).clamp(0, 1)
        boxes = swap_axes(corners) if self.y_first else corners
        return Candidates(boxes=boxes * self.pixels, scores=self.objective.scores(raw["cls"]))


def flatten_cells(maps: Sequence[Tensor], columns: int) -> Tensor:
    """Predictor outputs (N, boxes * columns, H, W) to rows (N, A, columns), cell by cell."""
    return torch.cat([m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, columns) for m in maps], dim=1)
