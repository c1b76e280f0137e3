"""Random numbers of a training step that do not depend on how its images are cut into pieces.

A step seeds torch's global generator with its number. What is drawn here has a row for each image
of the whole batch, of which a piece takes its own: an image meets the same numbers on one worker or
on many, alone or with others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

#: First image and number of images of the whole batch; None where the images are the whole batch.
_piece: tuple[int, int] | None = None


@contextmanager
def piece_of_batch(first: int, total: int) -> Iterator[None]:
    """Inside, the images are rows ``first`` and following of a batch of ``total``."""
    global _piece
    before, _piece = _piece, (first, total)
    try:
        yield
    finally:
        _piece = before


def rand(shape: Sequence[int], *, image_axis: int = 0, device: torch.device) -> Tensor:
    """Uniform numbers in [0, 1).

    Args:
        shape: of the result.
        image_axis: the axis that counts images.
        device: whose generator draws.
    """
    if _piece is None:
        return torch.rand(*shape, device=device)
    first, total = _piece
    whole = [total if axis == image_axis else size for axis, size in enumerate(shape)]
    return torch.rand(*whole, device=device).narrow(image_axis, first, shape[image_axis])
