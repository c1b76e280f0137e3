"""Non-maximum suppression for CUDA devices: one Triton program a row of boxes goes through it.

Unlike whole-tensor operations it needs no matrix of overlaps, and unlike a loop on the host it
never has to be asked whether it has ended. Overlaps have the bits of
:func:`detectors.boxes.pairwise_iou`: divisions are rounded to nearest, and no product is fused
with a sum.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Smallest normal float32, below which :func:`~detectors.boxes.pairwise_iou` divides by nothing.
_TINY = tl.constexpr(torch.finfo(torch.float32).tiny)

#: Triton's interpreter, for machines without such a device, does not know the compiler's options.
_OPTIONS = {} if os.environ.get("TRITON_INTERPRET") == "1" else {"enable_fp_fusion": False}


@triton.jit  # type: ignore[untyped-decorator]
def _scan(boxes, valid, keep, count, threshold, size: tl.constexpr):  # type: ignore[no-untyped-def]
    """Go from each box that stays to the next, striking out what it overlaps."""
    first = tl.program_id(0).to(tl.int64) * count
    slots = tl.arange(0, size)
    inside = slots < count
    corners = boxes + (first + slots) * 4
    x1 = tl.load(corners, mask=inside, other=0.0)
    y1 = tl.load(corners + 1, mask=inside, other=0.0)
    x2 = tl.load(corners + 2, mask=inside, other=0.0)
    y2 = tl.load(corners + 3, mask=inside, other=0.0)
    areas = (x2 - x1) * (y2 - y1)
    alive = tl.load(valid + first + slots, mask=inside, other=0) != 0
    at = tl.min(tl.where(alive, slots, size))
    while at < size:
        corner = boxes + (first + at) * 4
        u1 = tl.load(corner)
        v1 = tl.load(corner + 1)
        u2 = tl.load(corner + 2)
        v2 = tl.load(corner + 3)
        width = tl.maximum(tl.minimum(x2, u2) - tl.maximum(x1, u1), 0.0)
        height = tl.maximum(tl.minimum(y2, v2) - tl.maximum(y1, v1), 0.0)
        overlap = width * height
        union = (u2 - u1) * (v2 - v1) + areas - overlap
        iou = tl.div_rn(overlap, tl.maximum(union, _TINY))
        behind = slots > at
        alive = alive & ~((iou > threshold) & behind)
        at = tl.min(tl.where(alive & behind, slots, size))
    tl.store(keep + first + slots, alive.to(tl.uint8), mask=inside)


def suppress_by_scan(boxes: Tensor, valid: Tensor, iou_threshold: float) -> Tensor:
    """:func:`detectors.suppression.suppress_sorted` on a CUDA device."""
    rows, count = valid.shape
    keep = torch.zeros_like(valid, dtype=torch.uint8)
    if keep.numel():
        _scan[(rows,)](
            boxes.contiguous(),
            valid.contiguous().view(torch.uint8),
            keep,
            count,
            iou_threshold,
            size=triton.next_power_of_2(count),
            num_warps=8,
            **_OPTIONS,
        )
    return keep.view(torch.bool)
