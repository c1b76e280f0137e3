"""Feature pyramid network (Lin et al., CVPR 2017).

State-dict names are those of torchvision's ``FeaturePyramidNetwork``; the shorter ones of its first
released checkpoints (``inner_blocks.0.weight``) are understood on loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class FeaturePyramid(nn.Module):
    """Maps of one width at every scale, and one more at twice the largest stride.

    Lateral 1x1 and output 3x3 convolutions have biases and no normalisation. A coarser map is
    enlarged to exactly the size of the next finer one by repeating its cells; the extra map takes
    every second cell of the last.

    Args:
        in_channels: channels of the maps that come in, finest first.
        out_channels: channels of all maps that go out.
    """

    def __init__(self, in_channels: Sequence[int], *, out_channels: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out_channels, 1)) for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(out_channels, out_channels, 3, padding=1)) for _ in in_channels
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
        """(N, C_l, H_l, W_l), finest first, to the same sizes and one more, (N, C, H_l, W_l)."""
        top: Tensor = self.inner_blocks[-1](maps[-1])
        pyramid = [self.layer_blocks[-1](top)]
        for index in reversed(range(len(maps) - 1)):
            lateral: Tensor = self.inner_blocks[index](maps[index])
            top = lateral + F.interpolate(top, size=lateral.shape[-2:], mode="nearest")
            pyramid.insert(0, self.layer_blocks[index](top))
        return [*pyramid, F.max_pool2d(pyramid[-1], 1, stride=2)]
