"""What goes into a detector and comes out of it, padded to fixed shapes.

Boxes are xyxy, absolute pixels of the network input, float32. Labels are contiguous 0..K-1;
background is a detector's private matter and never leaves it.

Shape legend used throughout the package:
    N images, G ground-truth slots, A priors/anchors/proposals, K classes, H and W input size.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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


class LossTerm(NamedTuple):
    """One of a detector's losses, not yet divided.

    Sums and divisors of all pieces of a batch are added up before anything is divided, so that a
    loss does not depend on how the batch is cut.

    Attributes:
        sum: scalar over the images given; gradients flow through it.
        divisor: scalar count that it is divided by, such as the number of positives.
    """

    sum: Tensor
    divisor: Tensor

    def over(self, divisor: Tensor) -> Tensor:
        """What these images add to the loss of a batch of this divisor; below 1 it counts as 1."""
        return self.sum / divisor.clamp(min=1)


class ImageDetections(NamedTuple):
    """Detections of one image on the CPU, best first; equal scores by prior, then by class.

    Attributes:
        boxes: (M, 4) float32 xyxy, in whatever pixels the candidates were.
        scores: (M,) float32; decayed ones after soft suppression.
        labels: (M,) int64 in 0..K-1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
