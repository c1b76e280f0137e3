"""The contract between a detector and everything that trains, evaluates or exports it.

Boxes are xyxy, absolute pixels of the network input, float32. Labels are contiguous 0..K-1;
background is a detector's private matter and never leaves it. All shapes are fixed: no
boolean-mask indexing and no per-image loop between input and loss, which is what lets the same
code compile, export and run on an NPU.

Shape legend used throughout the package:
    N images, G ground-truth slots, A priors/anchors/proposals, K classes, H and W input size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detectors.postprocess import PostprocessConfig
from detectors.settings import Settings


class Targets(NamedTuple):
    """Ground truth of a batch, padded.

    Attributes:
        boxes: (N, G, 4) float32 xyxy in network pixels; zeros where not valid.
        labels: (N, G) int64 in 0..K-1; zeros where not valid.
        valid: (N, G) bool.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor


class Candidates(NamedTuple):
    """Decoded, not yet filtered output: what post-processing and export share.

    Attributes:
        boxes: (N, A, 4) float32 xyxy in network pixels, shared by all classes, or
            (N, A, K, 4) where a detector regresses a box per class.
        scores: (N, A, K) float32 in [0, 1].
    """

    boxes: Tensor
    scores: Tensor


class DetectorConfig(Settings):
    """Base of every detector's typed configuration: strict, frozen, unknown keys refused.

    Attributes:
        name: key of the detector in :data:`detectors.registry.DETECTORS`.
        postprocess: how this detector's candidates become detections.
    """

    name: str
    postprocess: PostprocessConfig


class Detector(nn.Module, ABC):
    """A detector: uint8 images in, raw outputs, named losses and decoded candidates out.

    Attributes:
        input_size: (H, W) of the images it takes.
        num_classes: K, foreground classes only.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    #: Whether the published weights expect blue-green-red channel order.
    bgr: ClassVar[bool] = False
    #: Raw outputs whose rows are in an order of the network's making, boxes (N, P, 4) and scores
    #: (N, P) first; candidates have the same rows. Rounding may exchange neighbours.
    ranked: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        input_size: tuple[int, int],
        num_classes: int,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
    ) -> None:
        """Args: means and deviations are on the 0..255 scale, in RGB order."""
        super().__init__()
        self.input_size = input_size
        self.num_classes = num_classes
        shape = (1, 3, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(shape), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) RGB of any dtype on the 0..255 scale to the float input of the network."""
        normalized = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        return normalized.flip(1) if self.bgr else normalized

    def prior_boxes(self) -> Tensor | None:
        """(A, 4) xyxy pixels of the input: the boxes that offsets refer to, None without any.

        By default the buffer ``anchors``.
        """
        return dict(self.named_buffers(recurse=False)).get("anchors")

    @abstractmethod
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Raw outputs of (N, 3, H, W) RGB images on the 0..255 scale, uint8 or float."""

    @abstractmethod
    def loss(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """Named scalar losses; their sum is minimised. Finite for images without boxes.

        What is random in them comes from torch's global generator, which the caller seeds.
        """

    @abstractmethod
    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        """Raw outputs to boxes and scores of fixed shape."""
