"""M2Det, a single-shot detector on a multi-level feature pyramid (Zhao et al., AAAI 2019).

State-dict names are those of VDIGPKU/M2Det: ``base.*``, ``reduce.*``, ``up_reduce.*``,
``leach.<i>.*``, ``unet<i>.*``, ``Norm.*``, ``loc.<s>.*``, ``conf.<s>.*`` and, with SFAM,
``sfam_module.*``; its released weights load as they are. So do its preprocessing, BGR less the mean
and not divided, whatever the backbone, and what its code does otherwise than the paper: all levels
share one reduction of the base feature, and the largest scale alone is normalised. Priors are a
function of the input size alone (configs/m2det{320,512,704,800}_*.py and
layers/functions/prior_box.py there).

Deviations: without pretrained weights VGG16 is initialised as He et al. (2015) do; the classifier
of a ResNet, which takes no part, is frozen.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from detectors.backbones import build_backbone
from detectors.backbones.config import Depth
from detectors.backbones.layers import Backbone, make_divisible
from detectors.backbones.resnet import ResNet, make_norm
from detectors.backbones.vgg import VGG16Reduced
from detectors.base import CAFFE_MEAN, NO_STD
from detectors.m2det.blocks import BasicConv, ScaleAttention, ThinnedUShape, fuse
from detectors.m2det.config import M2DetConfig, PublishedBackbone, Size
from detectors.objectives import MultiBoxObjective
from detectors.priors import Level, elongated, grid_boxes
from detectors.single_shot import SingleShot, flatten_cells

#: Scales of the pyramid, and priors at each of their cells.
SCALES = 6
BOXES_PER_CELL = 6

#: Distance in pixels between the cells of each scale, by input size.
_STEPS: dict[Size, tuple[int, ...]] = {
    320: (8, 16, 32, 64, 107, 320),
    512: (8, 16, 32, 64, 128, 256),
    704: (8, 16, 32, 64, 117, 176),
    800: (8, 16, 32, 62, 115, 160),
}

#: Side of the square at each scale and at the one that would follow, relative to the input size.
_SIDES: dict[Size, tuple[float, ...]] = {
    320: (0.08, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    512: (0.06, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
    704: (0.04, 0.11, 0.23, 0.39, 0.58, 0.80, 1.05),
    800: (0.04, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05),
}


def scale_cells(size: Size) -> list[int]:
    """Cells along a side of each scale's map, large to small.

    The maps from stride 8 on halve, rounding up; the last comes from a 3x3 convolution without
    padding.
    """
    cells = [size // 8]
    for _ in range(SCALES - 2):
        cells.append(-(-cells[-1] // 2))
    return [*cells, cells[-1] - 2]


def m2det_levels(size: Size) -> list[Level]:
    """The boxes at each scale: a square, one between it and the next, elongated ones of 2 and 3."""
    sides = [round(size * share, 2) / size for share in _SIDES[size]]
    levels = []
    for index, (cells, step) in enumerate(zip(scale_cells(size), _STEPS[size], strict=True)):
        side, following = sides[index : index + 2]
        between = math.sqrt(side * following)
        shapes = [(side, side), (between, between), *elongated(side, (2, 3))]
        levels.append(Level(cells, cells, step / size, shapes))
    return levels


def m2det_priors(size: Size) -> Tensor:
    """(A, 4) float64 ``cx, cy, w, h`` relative to the input size.

    Each of the four numbers is cut to [0, 1], not the corners: boxes may reach beyond the image.
    12,810 priors at 320 pixels, 32,760 at 512, 62,022 at 704, 80,208 at 800.
    """
    return grid_boxes(m2det_levels(size)).clamp(0.0, 1.0)


#: Channels of the reduced shallow and deep features, of the input every level shares, and of the
#: maps of a level.
_SHALLOW, _DEEP, _SHARED, _PLANES = 256, 512, 128, 256

_DEPTHS: dict[PublishedBackbone, Depth] = {"resnet50": 50, "resnet101": 101}

#: Classes of ImageNet.
_CLASSES = 1000


def _published_backbone(name: PublishedBackbone, *, width: float) -> Backbone:
    """The backbone of a variant, freshly initialised.

    The third stage of a ResNet does not halve its map here, so that C3 has stride 8 and C5 stride
    16. Its classifier is in the released files, so it is here too; it takes no part and does not
    train.
    """
    if name == "vgg16":
        return VGG16Reduced(width=width).initialize()
    net = ResNet(depth=_DEPTHS[name], norm=make_norm("batch"), width=width, strides=(1, 2, 1, 2))
    net.fc = nn.Linear(net.channels[3], _CLASSES).requires_grad_(False)
    return net


class M2Det(SingleShot):
    """M2Det: 12,810 priors at 320 pixels, 32,760 at 512, 62,022 at 704, 80,208 at 800.

    With VGG16 and 80 classes 132,633,140 parameters, whatever the input size.

    Of the backbone the first map of stride 8 and the first of stride 16 are taken.

    Args:
        config: validated configuration.
        num_classes: foreground classes.
    """

    bgr: ClassVar[bool] = True
    cut_boxes: ClassVar[bool] = False

    def __init__(self, config: M2DetConfig, *, num_classes: int) -> None:
        super().__init__(
            size=config.size,
            num_classes=num_classes,
            pixel_mean=CAFFE_MEAN,
            pixel_std=NO_STD,
            priors=m2det_priors(config.size),
            objective=MultiBoxObjective(config.loss),
            title=config.title,
        )
        width, levels = config.width, config.levels
        shallow, deep, shared, planes = (
            make_divisible(channels * width) for channels in (_SHALLOW, _DEEP, _SHARED, _PLANES)
        )
        self.smallest_map = scale_cells(config.size)[-1]
        if config.backbone is None:
            self.base = _published_backbone(config.published_backbone, width=width)
        else:
            self.base = build_backbone(config.backbone)
        self.taps = [self.base.strides.index(stride) for stride in (8, 16)]
        taken = [self.base.channels[tap] for tap in self.taps]
        self.reduce = BasicConv(taken[0], shallow, 3, padding=1)
        self.up_reduce = BasicConv(taken[1], deep, 1)
        # One module under as many names as there are levels, like the layers of SFAM.
        self.leach = nn.ModuleList([BasicConv(shallow + deep, shared, 1)] * levels)
        self.unets = [
            ThinnedUShape(shared if level == 0 else shared + planes, planes)
            for level in range(levels)
        ]
        for level, unet in enumerate(self.unets, start=1):
            self.add_module(f"unet{level}", unet)
        channels = planes * levels
        self.sfam_module = ScaleAttention(channels, scales=SCALES) if config.sfam else None
        self.Norm = nn.BatchNorm2d(channels)
        self.loc = self._heads(channels, 4)
        self.conf = self._heads(channels, 1 + num_classes)
        self._initialize(config.initialization)

    @staticmethod
    def _heads(channels: int, columns: int) -> nn.ModuleList:
        return nn.ModuleList(
            nn.Conv2d(channels, BOXES_PER_CELL * columns, 3, padding=1) for _ in range(SCALES)
        )

    def _initialize(self, whose: Literal["released", "mindspore"]) -> None:
        pyramid = [self.reduce, self.up_reduce, self.leach, *self.unets]
        body = [m for part in pyramid for m in part.modules() if isinstance(m, nn.Conv2d)]
        heads = [m for part in (self.loc, self.conf) for m in part if isinstance(m, nn.Conv2d)]
        for conv in body:
            if whose == "released":
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")
            else:
                nn.init.normal_(conv.weight, std=1e-3)
        for conv in heads:
            if whose == "mindspore":
                nn.init.normal_(conv.weight, std=1e-3)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Normalised images to the maps the heads see, (N, 256 * levels, H, W), large to small."""
        maps = self.base(x)
        base = fuse(self.reduce(maps[self.taps[0]]), self.up_reduce(maps[self.taps[1]]))
        levels: list[list[Tensor]] = []
        # The shared reduction runs once for each level, because its running statistics have seen
        # every training batch as often in the released weights.
        for leach, unet in zip(self.leach, self.unets, strict=True):
            inputs = [leach(base)] + ([levels[-1][-1]] if levels else [])
            levels.append(unet(torch.cat(inputs, dim=1)))
        scales = [torch.cat(maps, dim=1) for maps in zip(*levels, strict=True)][::-1]
        if self.sfam_module is not None:
            scales = self.sfam_module(scales)
        return [self.Norm(scales[0]), *scales[1:]]

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to offsets ``dcx, dcy, dw, dh`` and class logits.

        Raises:
            ValueError: one image alone in training, where the smallest map is a single cell: batch
                normalisation has nothing to take statistics of.
        """
        if self.training and self.smallest_map == 1 and len(x) == 1:
            raise ValueError(
                f"{self.title} cannot train on a single image at a time, because its smallest map "
                "is a single cell; give each worker at least 2 images"
            )
        scales = self.pyramid(x)
        loc = [head(m) for head, m in zip(self.loc, scales, strict=True)]
        conf = [head(m) for head, m in zip(self.conf, scales, strict=True)]
        return flatten_cells(loc, 4), flatten_cells(conf, 1 + self.num_classes)
