"""Feature pyramids on any backbone: what detectors with a head for every scale work on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.layers import Backbone


class FeaturePyramid(nn.Module):
    """Maps of one width at every scale, and more of them at twice the largest stride and beyond.

    Lin et al., CVPR 2017. State-dict names are those of torchvision's ``FeaturePyramidNetwork``;
    the shorter ones of its first released checkpoints (``inner_blocks.0.weight``) are understood on
    loading.

    Lateral 1x1 and output 3x3 convolutions have biases and no normalisation. A coarser map is
    enlarged to exactly the size of the next finer one by repeating its cells. Each extra map is
    made of the one before: ``pool`` takes every second cell (Faster R-CNN), ``conv`` a 3x3
    convolution of stride 2, activated but for the first (RetinaNet).

    Args:
        in_channels: channels of the maps that come in, finest first.
        out_channels: channels of all maps that go out.
        extra: what makes the extra maps.
        extra_levels: how many.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        out_channels: int,
        extra: Literal["pool", "conv"] = "pool",
        extra_levels: int = 1,
    ) -> None:
        super().__init__()
        self.extra_levels = extra_levels
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out_channels, 1)) for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in in_channels
        )
        self.extra_blocks = (
            nn.ModuleList(
                nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
                for _ in range(extra_levels)
            )
            if extra == "conv"
            else None
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for blocks in ("inner_blocks", "layer_blocks"):
            for index in range(len(self.inner_blocks)):
                for kind in ("weight", "bias"):
                    old = f"{prefix}{blocks}.{index}.{kind}"
                    if old in state_dict:
                        state_dict[f"{prefix}{blocks}.{index}.0.{kind}"] = state_dict.pop(old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(N, C_l, H_l, W_l), finest first, to as many and the extra ones, (N, C, H_l, W_l)."""
        top: Tensor = self.inner_blocks[-1](maps[-1])
        pyramid = [self.layer_blocks[-1](top)]
        for index in reversed(range(len(maps) - 1)):
            lateral: Tensor = self.inner_blocks[index](maps[index])
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            pyramid.insert(0, self.layer_blocks[index](top))
        for level in range(self.extra_levels):
            if self.extra_blocks is None:
                pyramid.append(F.max_pool2d(pyramid[-1], 1, stride=2))
            else:
                before = F.relu(pyramid[-1]) if level else pyramid[-1]
                pyramid.append(self.extra_blocks[level](before))
        return pyramid


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
