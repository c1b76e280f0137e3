"""A detector and a backbone as another package brings them: this file and two entry points.

FCOS (Tian et al., ICCV 2019): every cell of a pyramid predicts classes, the distances to the sides
of the box it lies in, and how central it lies. No priors, no published figures, no foreign weights.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones import build_backbone
from detectors.backbones.config import AnyBackboneConfig, BackboneConfig
from detectors.backbones.layers import Backbone
from detectors.base import Detector
from detectors.boxes import clip_boxes
from detectors.config import DetectorConfig, InputSize
from detectors.losses import sigmoid_focal
from detectors.matching import with_a_slot
from detectors.pyramid import PyramidBackbone
from detectors.structures import Candidates, LossTerm, Targets


class TinyConvsConfig(BackboneConfig):
    """Five convolutions of stride 2.

    Attributes:
        name: selects this backbone.
        channels: of the first; each following one has twice as many.
    """

    builder: ClassVar[str] = "tiny_fcos:TinyConvs"
    strides: ClassVar[tuple[int, ...]] = (4, 8, 16, 32)

    name: Literal["tiny_convs"] = "tiny_convs"
    channels: int = 8


class TinyConvs(Backbone):
    """The backbone of :class:`TinyConvsConfig`."""

    def __init__(self, config: TinyConvsConfig) -> None:
        super().__init__()
        widths = [3, *(config.channels * 2**i for i in range(5))]
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            for before, after in pairwise(widths)
        )
        self.channels = tuple(widths[2:])
        self.strides = config.strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return tuple(maps[1:])


class TinyFCOSConfig(DetectorConfig):
    """FCOS, small.

    Attributes:
        name: selects this detector.
        postprocess: how candidates become detections.
        input_size: height and width.
        channels: of the pyramid.
        backbone: what the features come from.
    """

    builder: ClassVar[str] = "tiny_fcos:TinyFCOS"

    name: Literal["tiny_fcos"] = "tiny_fcos"
    input_size: InputSize = (128, 128)
    channels: int = 32
    backbone: AnyBackboneConfig = TinyConvsConfig()


class TinyFCOS(Detector):
    """The network of :class:`TinyFCOSConfig`."""

    points: Tensor
    reach: Tensor
    stride: Tensor

    def __init__(self, config: TinyFCOSConfig, *, num_classes: int) -> None:
        super().__init__(title=config.title, input_size=config.input_size, num_classes=num_classes)
        body = build_backbone(config.backbone)
        width = config.channels
        self.backbone = PyramidBackbone(body, finest=8, channels=width, extra="conv")
        self.tower = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()
        )
        self.cls = nn.Conv2d(width, num_classes, 3, padding=1)
        self.loc = nn.Conv2d(width, 4, 3, padding=1)
        self.center = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.constant_(self.cls.bias, -math.log(99))
        height, columns = config.input_size
        points, reach, strides = [], [], []
        for level, stride in enumerate(self.backbone.strides):
            y, x = (
                (torch.arange(math.ceil(side / stride)) + 0.5) * stride
                for side in (height, columns)
            )
            grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
            low = 0.0 if level == 0 else 4.0 * stride
            high = math.inf if level == 4 else 8.0 * stride
            points.append(grid)
            reach.append(torch.tensor([[low, high]]).expand(len(grid), 2))
            strides.append(torch.full((len(grid),), float(stride)))
        self.register_buffer("points", torch.cat(points), persistent=False)
        self.register_buffer("reach", torch.cat(reach).contiguous(), persistent=False)
        self.register_buffer("stride", torch.cat(strides), persistent=False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        hidden = [self.tower(x) for x in self.backbone(self.normalize(images))]

        def rows(head: nn.Module) -> Tensor:
            parts = [head(x).permute(0, 2, 3, 1).flatten(1, 2) for x in hidden]
            return torch.cat(parts, dim=1).float()

        return {
            "cls": rows(self.cls),
            "loc": rows(self.loc),
            "center": rows(self.center).squeeze(-1),
        }

    def loss_terms(self, images: Tensor, targets: Targets) -> dict[str, LossTerm]:
        raw = self(images)
        labels, wanted = self._targets(with_a_slot(targets))
        positive = labels >= 0
        count = positive.sum()
        cls = sigmoid_focal(raw["cls"], labels, alpha=0.25, gamma=2.0).sum()
        left, top, right, bottom = wanted.clamp(min=1e-6).unbind(-1)
        horizontal = torch.minimum(left, right) / torch.maximum(left, right)
        vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
        central = torch.where(positive, (horizontal * vertical).sqrt(), 0.0)
        overlap = _iou(self._distances(raw["loc"]), wanted)
        loc = torch.where(positive, central * (1.0 - overlap), 0.0).sum()
        center = F.binary_cross_entropy_with_logits(raw["center"], central, reduction="none")
        return {
            "cls": LossTerm(cls, count),
            "loc": LossTerm(loc, central.detach().sum()),
            "center": LossTerm(torch.where(positive, center, 0.0).sum(), count),
        }

    def _distances(self, loc: Tensor) -> Tensor:
        return loc.clamp(max=6.0).exp() * self.stride.unsqueeze(-1)

    def _targets(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """Class (N, A), -1 for none, and distances (N, A, 4) of the smallest box around a cell."""
        low, high = targets.boxes.unsqueeze(2).chunk(2, dim=-1)
        distances = torch.cat([self.points - low, high - self.points], dim=-1)
        farthest = distances.amax(-1)
        fits = (distances.amin(-1) > 0) & targets.valid.unsqueeze(2)
        fits &= (farthest >= self.reach[:, 0]) & (farthest < self.reach[:, 1])
        area = (high - low).prod(-1)
        smallest = area.masked_fill(~fits, math.inf).min(dim=1)
        slot = smallest.indices
        labels = torch.where(smallest.values.isfinite(), targets.labels.gather(1, slot), -1)
        index = slot[:, None, :, None].expand(-1, 1, -1, 4)
        return labels, distances.gather(1, index).squeeze(1)

    def decode(self, raw: dict[str, Tensor]) -> Candidates:
        distances = self._distances(raw["loc"])
        corners = torch.cat(
            [self.points - distances[..., :2], self.points + distances[..., 2:]], dim=-1
        )
        scores = (raw["cls"].sigmoid() * raw["center"].sigmoid().unsqueeze(-1)).sqrt()
        return Candidates(boxes=clip_boxes(corners, self.input_size), scores=scores)


def _iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes around one point, given as distances (..., 4)."""
    shared = torch.minimum(first, second).clamp(min=0)
    inner = (shared[..., 0] + shared[..., 2]) * (shared[..., 1] + shared[..., 3])
    areas = [(d[..., 0] + d[..., 2]) * (d[..., 1] + d[..., 3]) for d in (first, second)]
    return inner / (areas[0] + areas[1] - inner).clamp(min=1e-6)
