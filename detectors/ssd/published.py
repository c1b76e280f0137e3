"""Figures of the SSD family.

Parameters of the classic networks count the background among their class channels, as all
published counts do: 21, 81 and 91 channels are 20, 80 and 90 classes here.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_ZOO = "mindspore-ai/models, official/cv/SSD, built and counted"
_CLASSIC = "amdegroot/ssd.pytorch, built and counted"
_CONTINUED = "amdegroot/ssd.pytorch's parts put together after Caffe's SSD512, counted"
_TORCHVISION = "torchvision 0.29, SSD300_VGG16_Weights.COCO_V1"
_PAPER = "Liu et al., ECCV 2016"


def _ssd300(classes: int, parameters: int) -> Published:
    figures = (Figure("parameters", parameters, _CLASSIC), Figure("priors", 8732, _PAPER))
    return Published("ssd300_vgg16", classes, figures)


def _ssd512(classes: int, parameters: int) -> Published:
    figures = (Figure("parameters", parameters, _CONTINUED), Figure("priors", 24564, _PAPER))
    return Published("ssd512_vgg16", classes, figures)


PUBLISHED = (
    Published(
        "ssd300_mobilenet_v2",
        80,
        (
            Figure("parameters", 4_393_461, _ZOO),
            Figure("parameter_tensors", 255, _ZOO),
            Figure("values", 4_445_365, _ZOO),
            Figure("value_tensors", 409, _ZOO),
            Figure("priors", 1917, _ZOO),
        ),
    ),
    _ssd300(1, 23_745_908),
    _ssd300(20, 26_285_486),
    _ssd300(80, 34_305_206),
    Published(
        "ssd300_vgg16",
        90,
        (
            Figure("parameters", 35_641_826, _TORCHVISION),
            Figure("multiply_adds", 34.858e9, _TORCHVISION, within=0.5e6),
        ),
    ),
    _ssd512(20, 27_188_676),
    _ssd512(80, 36_038_196),
)
