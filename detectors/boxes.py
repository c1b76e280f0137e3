"""Box arithmetic. Boxes are xyxy unless a name says otherwise; every function broadcasts.

Centre form holds two centre coordinates and two lengths in the same axis order, ``(cx, cy, w, h)``
or, in networks that put y first, ``(cy, cx, h, w)``: the conversions do not care which.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_centers(boxes: Tensor, *, plus_one: bool = False) -> Tensor:
    """(..., 4) corners to (..., 4) centre and size, keeping the axis order.

    With ``plus_one`` corners are the first and the last pixel inside, so a size is one more than
    their difference.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    size = high - low + 1.0 if plus_one else high - low
    return torch.cat([(low + high) / 2, size], dim=-1)


def to_corners(boxes: Tensor, *, plus_one: bool = False) -> Tensor:
    """Inverse of :func:`to_centers`: (..., 4) centre and size to (..., 4) corners."""
    center, size = boxes[..., :2], boxes[..., 2:]
    half = (size - 1.0) / 2 if plus_one else size / 2
    return torch.cat([center - half, center + half], dim=-1)


def swap_axes(boxes: Tensor) -> Tensor:
    """Exchange x and y in corner or centre form: xyxy <-> yxyx, cxcywh <-> cycxhw."""
    a, b, c, d = boxes.unbind(-1)
    return torch.stack([b, a, d, c], dim=-1)


def pairwise_iou(first: Tensor, second: Tensor, *, plus_one: bool = False) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        first: (..., P, 4) xyxy.
        second: (..., Q, 4) xyxy; leading dimensions broadcast against those of ``first``.
        plus_one: the coordinates are pixel indices, so a length is ``x2 - x1 + 1``.

    Returns:
        (..., P, Q) in [0, 1]; 0 for a pair of boxes without area.
    """
    one = 1.0 if plus_one else 0.0
    x1, y1, x2, y2 = first.unsqueeze(-2).unbind(-1)
    u1, v1, u2, v2 = second.unsqueeze(-3).unbind(-1)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1) + one).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1) + one).clamp(min=0)
    overlap = width * height
    area_first = (x2 - x1 + one) * (y2 - y1 + one)
    area_second = (u2 - u1 + one) * (v2 - v1 + one)
    union = area_first + area_second - overlap
    return overlap / union.clamp(min=torch.finfo(union.dtype).tiny)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., 4) xyxy boxes cut to an image of ``size`` (height, width)."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        [x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)], dim=-1
    )


def map_to_original(boxes: Tensor, transforms: Tensor, sizes: Tensor) -> Tensor:
    """Boxes in network pixels to boxes in pixels of the original images, cut to those.

    Args:
        boxes: (N, A, 4) or (N, A, K, 4) xyxy in network pixels.
        transforms: (N, 4) ``sx, sy, tx, ty`` with network x = sx * original x + tx.
        sizes: (N, 2) original height and width.

    Returns:
        Same shape and dtype as ``boxes``.
    """
    shape = (len(boxes),) + (1,) * (boxes.dim() - 2) + (2,)
    transforms = transforms.to(boxes)
    scale = transforms[:, :2].reshape(shape)
    offset = transforms[:, 2:].reshape(shape)
    limit = sizes.to(boxes).flip(-1).reshape(shape)
    corners = [(boxes[..., c : c + 2] - offset) / scale for c in (0, 2)]
    return torch.cat([corner.clamp(min=0).minimum(limit) for corner in corners], dim=-1)
