"""The head of RetinaNet with normalisation of its own for each level ("separate BN").

State-dict names are those of mmdetection's RetinaSepBNHead, which SpineNet-Pytorch uses: a shared
convolution appears once for each level, under ``cls_convs.<level>.<i>.conv``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from detectors.backbones.layers import ConvNormAct, NormFactory
from detectors.backbones.spinenet import LEVELS, ActFactory
from detectors.single_shot import flatten_cells

#: Score of every anchor and class before training (Lin et al., section 4.1).
PRIOR_SCORE = 0.01


class RetinaHead(nn.Module):
    """Offsets and class logits of every anchor.

    Convolutions are shared by the levels, normalisation is not. Channels of the predictors vary
    fastest by coordinate or class, then by anchor.

    Args:
        in_channels: of the maps.
        channels: of the towers.
        convs: convolutions of a tower.
        anchors: anchors of a cell.
        num_classes: foreground classes.
        norm: makes the normalisation layers.
        act: makes the activations.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        convs: int,
        anchors: int,
        num_classes: int,
        norm: NormFactory,
        act: ActFactory,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes

        def towers() -> nn.ModuleList:
            shared = [
                nn.Conv2d(channels if i else in_channels, channels, 3, padding=1, bias=False)
                for i in range(convs)
            ]
            return nn.ModuleList(
                nn.ModuleList(ConvNormAct(conv, norm(channels), act()) for conv in shared)
                for _ in LEVELS
            )

        self.cls_convs = towers()
        self.reg_convs = towers()
        self.retina_cls = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, std=0.01)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        assert self.retina_cls.bias is not None
        nn.init.constant_(self.retina_cls.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Five maps (N, C, H, W) to offsets (N, A, 4) and class logits (N, A, K)."""
        loc, cls = [], []
        for x, cls_tower, reg_tower in zip(maps, self.cls_convs, self.reg_convs, strict=True):
            cls.append(self.retina_cls(_through(cls_tower, x)))
            loc.append(self.retina_reg(_through(reg_tower, x)))
        return flatten_cells(loc, 4), flatten_cells(cls, self.num_classes)


def _through(tower: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(tower, nn.ModuleList)
    for layer in tower:
        x = layer(x)
    return x
