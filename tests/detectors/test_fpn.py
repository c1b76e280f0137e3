"""The feature pyramid against torchvision's with the same weights."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from detectors.pyramid import FeaturePyramid

CHANNELS = (8, 16, 32, 64)


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.randn(2, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]


def test_pyramid_equals_torchvisions_at_odd_sizes() -> None:
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(list(CHANNELS), 12, extra_blocks=LastLevelMaxPool())
    mine = FeaturePyramid(CHANNELS, out_channels=12)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    mine.load_state_dict(theirs.state_dict())
    inputs = maps((25, 43), (13, 22), (7, 11), (4, 6))
    wanted = theirs(OrderedDict((str(i), x) for i, x in enumerate(inputs))).values()
    found = mine(inputs)
    assert [tuple(x.shape[2:]) for x in found] == [(25, 43), (13, 22), (7, 11), (4, 6), (2, 3)]
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_published_size() -> None:
    # Faster R-CNN card, section 1.
    pyramid = FeaturePyramid((256, 512, 1024, 2048), out_channels=256)
    assert sum(p.numel() for p in pyramid.parameters()) == 3_344_384


def test_first_released_names_load() -> None:
    source, mine = (FeaturePyramid(CHANNELS, out_channels=12) for _ in range(2))
    old = {
        name.replace(".0.weight", ".weight").replace(".0.bias", ".bias"): value
        for name, value in source.state_dict().items()
    }
    assert "layer_blocks.3.weight" in old
    mine.load_state_dict(old)
    for name, value in source.state_dict().items():
        assert torch.equal(value, mine.state_dict()[name]), name
