"""What the data room hands to the training room: fixed-shape, step-numbered batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Makes an array, its content left open, of a shape and a type.
Allocate: TypeAlias = Callable[[tuple[int, ...], Any], NDArray[Any]]


@dataclass(frozen=True)
class Batch:
    """One rank's share of one step, padded to fixed shapes.

    Shape legend: N images on this rank, G box slots, H and W the network input size.

    Attributes:
        step: global step this batch belongs to; -1 outside training.
        images: (N, H, W, 3) uint8 RGB. Normalisation is the model's, on the device.
        boxes: (N, G, 4) float32 xyxy, absolute pixels of the network input; zeros where padded.
        labels: (N, G) int64 contiguous labels; zeros where padded.
        valid: (N, G) bool, True for real boxes.
        sample_ids: (N,) int64 index of each image in its Dataset; -1 for a padded image (only in
            the last evaluation batch).
        image_ids: (N,) int64 data-set ids.
        sizes: (N, 2) int32 original height and width in pixels.
        transforms: (N, 4) float64 ``sx, sy, tx, ty``: network x = sx * original x + tx.
        replaced: ``(position, sample id, reason)`` of images that could not be used. In training
            another sample, always the same one, stands at that position; in evaluation the
            position is padding.
    """

    step: int
    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    valid: NDArray[np.bool_]
    sample_ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int32]
    transforms: NDArray[np.float64]
    replaced: tuple[tuple[int, int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.sample_ids)

    @classmethod
    def unfilled(
        cls, n: int, size: tuple[int, int], slots: int, allocate: Allocate = np.empty
    ) -> Batch:
        """Memory for ``n`` images of ``size`` = (H, W) with ``slots`` boxes each."""
        return cls(
            step=-1,
            images=allocate((n, *size, 3), np.uint8),
            boxes=allocate((n, slots, 4), np.float32),
            labels=allocate((n, slots), np.int64),
            valid=allocate((n, slots), np.bool_),
            sample_ids=allocate((n,), np.int64),
            image_ids=allocate((n,), np.int64),
            sizes=allocate((n, 2), np.int32),
            transforms=allocate((n, 4), np.float64),
        )


class BatchStream(Protocol):
    """A source of one rank's batches, in process or through Ray Data: same batches, same order.

    Attributes:
        allocate: makes the arrays of the batches that are trained on.
    """

    allocate: Allocate

    def train_batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """This rank's batches for steps ``start_step <= step < stop_step``, in order."""
        ...

    def eval_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation images, each exactly once."""
        ...
