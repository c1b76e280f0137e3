"""The contract between a detector and everything that trains, evaluates or exports it.

What is not in this contract, no other part of the program may ask of a detector. All shapes are
fixed: no boolean-mask indexing and no per-image loop between input and loss, which is what lets the
same code compile, export and run on an NPU. Boxes, labels and the letters of shapes are those of
:mod:`detectors.structures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from detectors.structures import Candidates, LossTerm, Targets

#: ImageNet statistics on the 0..255 scale, RGB.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

#: Means of the networks that come from Caffe, RGB; they do not divide.
CAFFE_MEAN = (123.0, 117.0, 104.0)
NO_STD = (1.0, 1.0, 1.0)


class Detector(nn.Module, ABC):
    """A detector: uint8 images in, raw outputs, named losses and decoded candidates out.

    Args:
        title: what the network calls itself; None for the name of the class.
        input_size: (H, W) of the images it takes.
        train_canvases: (H, W) of those it learns from, a batch all of one; none for ``input_size``.
        num_classes: K, foreground classes only.
        pixel_mean, pixel_std: on the 0..255 scale, in RGB order.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    #: Whether the published weights expect blue-green-red channel order.
    bgr: ClassVar[bool] = False
    #: Raw outputs whose rows are in an order of the network's making, boxes (N, P, 4) and scores
    #: (N, P) first; candidates have the same rows. Rounding may exchange neighbours.
    ranked: ClassVar[tuple[str, ...]] = ()
    #: Whether the classification loss takes :attr:`class_weights`.
    weighs_classes: ClassVar[bool] = False
    #: (K,) factor on the classification loss of examples of each class; None for 1.
    class_weights: Tensor | None

    def __init__(
        self,
        *,
        title: str | None = None,
        input_size: tuple[int, int],
        train_canvases: Sequence[tuple[int, int]] = (),
        num_classes: int,
        pixel_mean: tuple[float, float, float] = IMAGENET_MEAN,
        pixel_std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.title = type(self).__name__ if title is None else title
        self.input_size = input_size
        self.train_canvases = tuple(train_canvases) or (input_size,)
        self.num_classes = num_classes
        shape = (1, 3, 1, 1)
        self.register_buffer("class_weights", None, persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(shape), persistent=False)

    def extra_repr(self) -> str:
        """Title and number of classes, shown at the top of the printed module."""
        return f"{self.title}, num_classes={self.num_classes}"

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB of any dtype on the 0..255 scale to the float input of the network.

        Raises:
            ValueError: images of another size, for which priors would not fit.
        """
        if tuple(images.shape[-2:]) not in (self.input_size, *self.train_canvases):
            height, width = self.input_size
            raise ValueError(
                f"{self.title} takes images of {height} x {width} pixels, got a batch of shape "
                f"{tuple(images.shape)}; resize before the network, or set "
                "detector.input_size where the detector has it"
            )
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return normalized.flip(1) if self.bgr else normalized

    def weigh_classes(self, weights: Sequence[float]) -> None:
        """Set :attr:`class_weights`.

        Raises:
            ValueError: not one for each class, or the losses of this detector take none.
        """
        if not self.weighs_classes:
            raise ValueError(f"the losses of {self.title} take no detector.class_weights")
        if len(weights) != self.num_classes:
            raise ValueError(
                f"detector.class_weights has {len(weights)} values, but there are "
                f"{self.num_classes} classes"
            )
        self.class_weights = torch.tensor(weights, dtype=torch.float32)

    def class_factors(self, labels: Tensor) -> Tensor | None:
        """(...) factor on the classification loss of each example; None where all are 1.

        Args:
            labels: (...) int64 class of each example; background, outside 0..K-1, weighs 1.
        """
        if self.class_weights is None:
            return None
        real = (labels >= 0) & (labels < self.num_classes)
        weights = self.class_weights[labels.clamp(0, self.num_classes - 1)]
        return torch.where(real, weights, 1.0)

    def prior_boxes(self) -> Tensor | None:
        """(A, 4) xyxy pixels of the input: the boxes that offsets refer to; None without any."""
        return None

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs of (N, 3, H, W) RGB images on the 0..255 scale, uint8 or float."""

    @abstractmethod
    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        """Named losses, each a sum and the count that divides it.

        Finite for images without boxes. What is random in them is drawn by
        :func:`detectors.draws.rand` from torch's global generator, which the caller seeds.
        """

    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses of a whole batch; their sum is minimised."""
        terms = self.loss_terms(images, targets)
        return {name: term.over(term.divisor) for name, term in terms.items()}

    @torch.no_grad()
    def loss_divisors(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The divisors of :meth:`loss_terms` alone.

        Where a batch is learnt from piece by piece they are needed before the first backward pass.
        As it stands here that is a forward pass more; a detector whose divisors follow from the
        boxes overrides it.
        """
        return {name: term.divisor for name, term in self.loss_terms(images, targets).items()}

    @abstractmethod
    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Raw outputs to boxes and scores of fixed shape."""
