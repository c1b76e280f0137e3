"""The backbones of M2Det: features of stride 8 and 16."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from detectors.backbones.resnet import Depth, ResNet, make_norm
from detectors.backbones.vgg import VGG16Reduced
from detectors.m2det.config import Backbone

_DEPTHS: dict[Backbone, Depth] = {"resnet50": 50, "resnet101": 101}

#: Classes of ImageNet.
_CLASSES = 1000


class TwoMaps(NamedTuple):
    """A backbone and which of its maps are used.

    Attributes:
        network: images (N, 3, H, W) to a tuple of maps.
        taps: positions of the maps of stride 8 and 16 in that tuple.
        channels: of these two.
    """

    network: nn.Module
    taps: tuple[int, int]
    channels: tuple[int, int]


def make_backbone(name: Backbone, *, width: float) -> TwoMaps:
    """A freshly initialised backbone.

    The third stage of a ResNet does not halve its map here, so that C3 has stride 8 and C5 stride
    16. Its classifier is in the released files, so it is here too; it takes no part and does not
    train.

    Args:
        name: which one.
        width: factor on every channel count.
    """
    if name == "vgg16":
        vgg = VGG16Reduced(width=width)
        for module in vgg.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        return TwoMaps(vgg, (0, 1), vgg.channels)
    net = ResNet(depth=_DEPTHS[name], norm=make_norm("batch"), width=width, strides=(1, 2, 1, 2))
    net.fc = nn.Linear(net.channels[3], _CLASSES).requires_grad_(False)
    return TwoMaps(net, (1, 3), (net.channels[1], net.channels[3]))
