"""Feature pyramids on any backbone: what detectors with a head for every scale work on."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from detectors.backbones.fpn import FeaturePyramid
from detectors.backbones.layers import Backbone

#: Maps of a pyramid.
LEVELS = 5


class PyramidBackbone(Backbone):
    """A backbone and a feature pyramid on its maps: five maps of one width.

    State-dict names are torchvision's: ``body`` and ``fpn``.

    Args:
        body: the backbone.
        finest: stride of the finest map wanted; where the backbone has none as fine, its finest.
        channels: of every map.
        extra: what makes the maps coarser than the backbone's; see :class:`FeaturePyramid`.

    Raises:
        ValueError: the strides of the backbone's maps do not double from one to the next.
    """

    def __init__(
        self, body: Backbone, *, finest: int, channels: int, extra: Literal["pool", "conv"]
    ) -> None:
        super().__init__()
        self.first = next(i for i, stride in enumerate(body.strides) if stride >= finest)
        taken = body.strides[self.first :][:LEVELS]
        self.strides = tuple(taken[0] * 2**level for level in range(LEVELS))
        if self.strides[: len(taken)] != taken:
            raise ValueError(f"a pyramid needs strides that double, the backbone has {taken}")
        self.channels = (channels,) * LEVELS
        self.body = body
        self.fpn = FeaturePyramid(
            body.channels[self.first :][:LEVELS],
            out_channels=channels,
            extra=extra,
            extra_levels=LEVELS - len(taken),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised images (N, 3, H, W) to five maps (N, C, H_l, W_l)."""
        maps: list[Tensor] = self.fpn(self.body(x)[self.first :][:LEVELS])
        return maps
