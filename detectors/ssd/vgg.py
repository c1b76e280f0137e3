"""The original SSD300 and SSD512 on VGG16 (Liu et al., ECCV 2016).

State-dict names are those of amdegroot/ssd.pytorch: ``vgg.<i>``, ``L2Norm.weight``, ``extras.<i>``,
``loc.<k>``, ``conf.<k>``; its released weights load as they are, and so does its preprocessing: RGB
(its Caffe ancestor takes BGR) less the mean, not divided. It has no 512 variant; that one follows
Caffe's, with the names continued.

Deviations: without pretrained weights the backbone is initialised like the other layers; boxes are
cut to the image after decoding, as torchvision does.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.layers import init_xavier, make_divisible
from detectors.backbones.vgg import L2Norm, VGG16Reduced
from detectors.base import CAFFE_MEAN, NO_STD
from detectors.objectives import make_objective
from detectors.priors import classic_ssd_levels, grid_boxes
from detectors.single_shot import SingleShot, flatten_cells
from detectors.ssd.config import SSDConfig

#: Extra layers by input size: channels of the 1x1 convolution and of the one after it, and its
#: kernel size, stride and padding.
_EXTRAS = {
    300: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 1, 0),
        (128, 256, 3, 1, 0),
    ),
    512: (
        (256, 512, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 3, 2, 1),
        (128, 256, 4, 1, 1),
    ),
}


class SSDVGG16(SingleShot):
    """SSD on VGG16: 8,732 priors at 300 pixels, 24,564 at 512.

    Args:
        config: validated configuration of a VGG16 variant.
        num_classes: foreground classes.
    """

    def __init__(self, config: SSDConfig, *, num_classes: int) -> None:
        assert config.priors != "mindspore"
        size: Literal[300, 512] = 512 if config.variant == "ssd512_vgg16" else 300
        width = config.width
        levels = classic_ssd_levels(config.priors, size)
        super().__init__(
            size=size,
            num_classes=num_classes,
            pixel_mean=CAFFE_MEAN,
            pixel_std=NO_STD,
            priors=grid_boxes(levels),
            objective=make_objective(config.loss),
            title=config.title,
        )
        self.vgg = VGG16Reduced(width=width)
        self.L2Norm = L2Norm(self.vgg.channels[-2])
        self.extras = nn.ModuleList()
        channels = list(self.vgg.channels[-2:])
        for squeezed, base, kernel_size, stride, padding in _EXTRAS[size]:
            hidden, out_channels = make_divisible(squeezed * width), make_divisible(base * width)
            self.extras.append(nn.Conv2d(channels[-1], hidden, 1))
            self.extras.append(
                nn.Conv2d(hidden, out_channels, kernel_size, stride=stride, padding=padding)
            )
            channels.append(out_channels)
        pairs = [(c, len(level.shapes)) for c, level in zip(channels, levels, strict=True)]
        self.loc = nn.ModuleList(nn.Conv2d(c, 4 * a, 3, padding=1) for c, a in pairs)
        self.conf = nn.ModuleList(
            nn.Conv2d(c, (1 + num_classes) * a, 3, padding=1) for c, a in pairs
        )
        init_xavier(self)
        self.objective.begin([head.get_parameter("bias") for head in self.conf], 1 + num_classes)

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to offsets ``dcx, dcy, dw, dh`` and class logits."""
        _, shallow, x = self.vgg(x)
        maps = [self.L2Norm(shallow), x]
        for index, extra in enumerate(self.extras):
            x = F.relu(extra(x))
            if index % 2 == 1:
                maps.append(x)
        loc = [head(m) for head, m in zip(self.loc, maps, strict=True)]
        conf = [head(m) for head, m in zip(self.conf, maps, strict=True)]
        return flatten_cells(loc, 4), flatten_cells(conf, 1 + self.num_classes)
