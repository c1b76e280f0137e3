"""RoIAlign against torchvision's operator, level by level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detectors import roi_align as pooling
from detectors.roi_align import pyramid_layout, pyramid_roi_align

STRIDES = (4, 8, 16)
HEIGHT, WIDTH = 72, 104


def pyramid() -> list[Tensor]:
    return [torch.randn(2, 5, -(-HEIGHT // s), -(-WIDTH // s), requires_grad=True) for s in STRIDES]


def boxes() -> Tensor:
    """Small, large, without area, on the edge and beyond it."""
    low = torch.rand(2, 20, 2) * torch.tensor([WIDTH, HEIGHT])
    drawn = torch.cat([low, low + torch.rand(2, 20, 2) * 60], dim=-1)
    special = [[0, 0, WIDTH, HEIGHT], [10, 10, 10, 10], [-30, -20, 5, 9], [99, 70, 180, 140]]
    return torch.cat([drawn, torch.tensor(special).expand(2, -1, -1)], dim=1)


def reference(maps: list[Tensor], rois: Tensor, levels: Tensor, *, aligned: bool) -> Tensor:
    out = []
    for image in range(len(rois)):
        for roi, level in zip(rois[image], levels[image].tolist(), strict=True):
            out.append(
                roi_align(
                    maps[level][image : image + 1],
                    [roi[None]],
                    7,
                    spatial_scale=1 / STRIDES[level],
                    sampling_ratio=2,
                    aligned=aligned,
                )[0]
            )
    return torch.stack(out).view(*levels.shape, 5, 7, 7)


@pytest.mark.parametrize("aligned", [False, True])
def test_features_and_gradients_equal_torchvisions(aligned: bool) -> None:
    torch.manual_seed(3)
    maps, rois = pyramid(), boxes()
    levels = torch.randint(0, 3, rois.shape[:2])
    want = reference(maps, rois, levels, aligned=aligned)
    got = pyramid_roi_align(maps, rois, levels, strides=STRIDES, size=7, samples=2, aligned=aligned)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(want)
    wanted = torch.autograd.grad(want, maps, upstream)
    for mine, theirs in zip(torch.autograd.grad(got, maps, upstream), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_boxes_with_their_last_pixel_are_mindspores() -> None:
    """Its ``ROIAlign`` in its usual mode, by torchvision's: sides a pixel longer, and no shortest.

    mindspore-ai/mindspore, roi_align_cpu_kernel.cc, ``bin_box``: with ``roi_end_mode`` 1 a corner
    is (x2 + 1) * scale, and the least side of 1 is that of mode 0 alone.
    """
    torch.manual_seed(3)
    maps, rois = pyramid(), boxes()
    levels = torch.randint(0, 3, rois.shape[:2])
    # torchvision's aligned boxes have no shortest side, and lie half a cell further up and left.
    half = torch.tensor(STRIDES)[levels].unsqueeze(-1) / 2
    moved = rois + half + torch.tensor([0.0, 0.0, 1.0, 1.0])
    want = reference(maps, moved, levels, aligned=True)
    got = pyramid_roi_align(
        maps, rois, levels, strides=STRIDES, size=7, samples=2, aligned=False, end_pixel=True
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_additions_is_that_of_the_bag(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an NPU gets: the same values to the bit, and the same gradients but for rounding."""
    torch.manual_seed(3)
    maps, rois = [level.detach().to(dtype).requires_grad_() for level in pyramid()], boxes()
    levels = torch.randint(0, 3, rois.shape[:2])
    layout = pyramid_layout([(x.shape[2], x.shape[3]) for x in maps], STRIDES)

    def pool() -> Tensor:
        return pyramid_roi_align(
            maps, rois, levels, strides=STRIDES, size=7, samples=2, aligned=False, layout=layout
        )

    bag = pool()
    monkeypatch.setattr(pooling, "BAG_GRADIENT", set[str]())
    added = pool()
    torch.testing.assert_close(added, bag, rtol=0, atol=0)
    upstream = torch.randn_like(bag)
    wanted = torch.autograd.grad(bag, maps, upstream)
    close = {torch.float32: 2e-5, torch.float64: 1e-12}[dtype]
    for mine, theirs in zip(torch.autograd.grad(added, maps, upstream), wanted, strict=True):
        assert theirs.abs().max() > 1
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close)


class Pooling(torch.nn.Module):
    def forward(self, maps: list[Tensor], rois: Tensor, levels: Tensor) -> Tensor:
        pooled = pyramid_roi_align(
            maps, rois, levels, strides=STRIDES, size=7, samples=2, aligned=False
        )
        return pooled.flatten(2)


def test_an_exported_graph_pools_in_one_node_of_the_same_values() -> None:
    torch.manual_seed(3)
    maps, rois = [level.detach() for level in pyramid()], boxes()
    levels = torch.randint(0, 3, rois.shape[:2])
    program = torch.export.export(Pooling(), (maps, rois, levels))
    kinds = [str(node.target) for node in program.graph.nodes]
    assert kinds.count("detectors.pyramid_roi_align.default") == 1
    assert not any("embedding" in kind for kind in kinds)
    got = program.module()(maps, rois, levels)
    torch.testing.assert_close(got, Pooling()(maps, rois, levels), rtol=0, atol=0)
    arguments = (maps, rois, levels, list(STRIDES), 7, 2, True)
    torch.library.opcheck(torch.ops.detectors.pyramid_roi_align.default, arguments)
