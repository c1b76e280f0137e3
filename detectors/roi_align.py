"""RoIAlign (He et al., ICCV 2017) over all levels of a pyramid in one operation.

A pooled cell is a weighted sum of a fixed number of feature vectors, four neighbours of each of its
sample points. Written as that, an embedding bag, boxes of any level go through one call of fixed
shape, without a mask for each level, and with a kernel on every device torch runs on. Its gradient
has none on an NPU, and is put together from additions there.

An exported graph has one node for all of it, ``detectors::pyramid_roi_align``: runtimes that know
RoiAlign are told so by a translation of that node, and none has a fast embedding bag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from detectors.operators import operator

#: Types of devices whose embedding bag has a gradient; who places networks on others that do says
#: so. Additions serve on all.
BAG_GRADIENT = {"cpu"}


def pyramid_layout(sizes: Sequence[tuple[int, int]], strides: Sequence[int]) -> Tensor:
    """Where the cells of each level lie once the levels follow one another.

    Args:
        sizes: rows and columns of each level.
        strides: pixels per cell of each level.

    Returns:
        (L, 4) int64: first cell, rows, columns and stride of each level.
    """
    cells = [rows * columns for rows, columns in sizes]
    return torch.tensor(
        [
            (sum(cells[:level]), *size, stride)
            for level, (size, stride) in enumerate(zip(sizes, strides, strict=True))
        ]
    )


def pyramid_roi_align(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    size: int,
    samples: int,
    aligned: bool,
    end_pixel: bool = False,
    layout: Tensor | None = None,
) -> Tensor:
    """Features of each box, pooled from its level to a square of cells.

    Args:
        maps: (N, C, H_l, W_l) of each level.
        boxes: (N, R, 4) float32 xyxy in pixels of the image; no gradient flows to them.
        levels: (N, R) int64 index into ``maps``.
        strides: pixels per cell of each level.
        size: cells of the result, in each direction.
        samples: sample points per cell, in each direction.
        aligned: pixel centres lie at half coordinates (detectron2's v2). Otherwise they lie at
            whole ones and a box is at least one cell long (torchvision).
        end_pixel: a box ends behind the pixel that its second corner names, and is as short as that
            (MindSpore's ``ROIAlign``, whose ``roi_end_mode`` is 1 unless told otherwise).
        layout: :func:`pyramid_layout` of the maps, on their device. Without it, it is copied there
            at every call, and the host waits for that.

    Returns:
        (N, R, C, size, size).
    """
    if torch.compiler.is_exporting():
        node: Tensor = pyramid_roi_align_node(
            list(maps), boxes, levels, list(strides), size, samples, aligned, end_pixel
        )
        return node
    if layout is None:
        layout = _layout_of(maps, strides)
    return _by_embedding_bag(maps, boxes, levels, layout, size, samples, aligned, end_pixel)


@operator("detectors::pyramid_roi_align")
def pyramid_roi_align_node(
    maps: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: list[int],
    size: int,
    samples: int,
    aligned: bool,
    end_pixel: bool = False,
) -> Tensor:
    """:func:`pyramid_roi_align` as an operator of its own, without a gradient."""
    # What follows in the graph relies on the layout that the fake result has.
    layout = _layout_of(maps, strides)
    return _by_embedding_bag(
        maps, boxes, levels, layout, size, samples, aligned, end_pixel
    ).contiguous()


@pyramid_roi_align_node.register_fake
def _(
    maps: list[Tensor],
    boxes: Tensor,
    levels: Tensor,
    strides: list[int],
    size: int,
    samples: int,
    aligned: bool,
    end_pixel: bool = False,
) -> Tensor:
    return maps[0].new_empty(*levels.shape, maps[0].shape[1], size, size)


def _layout_of(maps: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    sizes = [(x.shape[2], x.shape[3]) for x in maps]
    return pyramid_layout(sizes, strides).to(maps[0].device)


def _by_embedding_bag(
    maps: Sequence[Tensor],
    boxes: Tensor,
    levels: Tensor,
    layout: Tensor,
    size: int,
    samples: int,
    aligned: bool,
    end_pixel: bool,
) -> Tensor:
    images, rois = levels.shape
    table = torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], dim=1)
    start, rows, columns, stride = layout[levels].unbind(-1)

    if end_pixel:
        boxes = torch.cat([boxes[..., :2], boxes[..., 2:] + 1.0], dim=-1)
    corners = boxes / stride.unsqueeze(-1)
    if aligned:
        corners = corners - 0.5
    low, extent = corners[..., :2], corners[..., 2:] - corners[..., :2]
    if not (aligned or end_pixel):
        extent = extent.clamp(min=1.0)
    steps = torch.arange(size * samples, device=boxes.device) + 0.5
    points = low.unsqueeze(2) + extent.unsqueeze(2) * (steps / (size * samples)).view(-1, 1)
    # (N, R, size, 2 * samples) each: the rows and columns a cell reads, and how much of them.
    x, x_weight = _neighbours(points[..., 0], columns, size)
    y, y_weight = _neighbours(points[..., 1], rows, size)

    first = start + table.shape[1] * torch.arange(images, device=boxes.device).unsqueeze(1)
    index = y.mul(columns[..., None, None])[:, :, :, None, :, None] + x[:, :, None, :, None, :]
    index = index + first.view(images, rois, 1, 1, 1, 1)
    weight = y_weight[:, :, :, None, :, None] * x_weight[:, :, None, :, None, :] / samples**2
    pooled = _weighted_sums(
        table.flatten(0, 1),
        index.flatten(4).flatten(0, 3),
        weight.flatten(4).flatten(0, 3).to(table.dtype),
    )
    return pooled.view(images, rois, size, size, -1).permute(0, 1, 4, 2, 3)


def _weighted_sums(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """(B, C): for each row of ``index`` (B, S) the sum of those rows of ``table`` (T, C), weighted.

    The weights (B, S) are constants.
    """
    if table.device.type in BAG_GRADIENT:
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
    pooled: Tensor = _WeightedSums.apply(table, index, weight)
    return pooled


class _WeightedSums(torch.autograd.Function):
    """The embedding bag with a gradient that is made of additions of rows.

    Values are those of the bag, bit for bit. The gradient adds the same products one sample point
    after the other instead of one bag after the other, which rounds differently.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(index, weight)
        ctx.rows = len(table)  # type: ignore[attr-defined]
        return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")

    @staticmethod
    def backward(ctx: FunctionCtx, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = upstream
        index, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        total = grad.new_zeros(ctx.rows, grad.shape[1])  # type: ignore[attr-defined]
        # All sample points together would take S times the memory of the pooled features.
        for at, share in zip(index.unbind(1), weight.unbind(1), strict=True):
            total.index_add_(0, at, grad * share.unsqueeze(1))
        return total, None, None


def _neighbours(points: Tensor, limit: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cells on both sides of each point along one axis, and their weights.

    Args:
        points: (N, R, size * samples) positions in cells.
        limit: (N, R) cells there are.
        size: cells of the result.

    Returns:
        (N, R, size, samples * 2) int64 and float32. A point more than a cell outside weighs
        nothing; one less far outside counts as on the edge.
    """
    limit = limit.unsqueeze(-1)
    inside = (points >= -1.0) & (points <= limit)
    last = limit - 1
    at = points.clamp(min=0.0).minimum(last.to(points.dtype))
    before = at.floor().long()
    after = (before + 1).minimum(last)
    fraction = at - before
    index = torch.stack([before, after], dim=-1)
    weight = torch.stack([1.0 - fraction, fraction], dim=-1) * inside.unsqueeze(-1)
    shape = (*points.shape[:2], size, -1)
    return index.reshape(shape), weight.reshape(shape)
