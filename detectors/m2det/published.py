"""Figures of M2Det.

Parameters do not depend on the input size, and channels count the background: 81, 21 and 2 are 80,
20 and 1 classes here. A ResNet's count its unused classifier. The paper's 98.9 M for eight levels
of 256 channels is not what the released code builds; the 507 MB of the MindSpore zoo's checkpoint
are the values below in float32.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_RELEASED = "VDIGPKU/M2Det, built and counted"
_MINDSPORE = "mindspore-ai/models, research/cv/m2det, built and counted"

#: Priors by input size.
_PRIORS = {320: 12_810, 512: 32_760, 704: 62_022, 800: 80_208}

#: Parameters, tensors of them and names in the state dict with 80 classes, without SFAM and with.
_COUNTS = {
    "vgg16": ((132_633_140, 449, 887), (133_159_604, 453, 911)),
    "resnet50": ((138_230_556, 580, 1177), (138_757_020, 584, 1201)),
    "resnet101": ((157_222_684, 733, 1483), (157_749_148, 737, 1507)),
}


def _network(size: int, backbone: str, *, sfam: bool) -> Published:
    parameters, tensors, names = _COUNTS[backbone][sfam]
    figures: tuple[Figure, ...] = (
        Figure("parameters", parameters, _RELEASED),
        Figure("parameter_tensors", tensors, _RELEASED),
        Figure("state_entries", names, _RELEASED),
        Figure("priors", _PRIORS[size], _RELEASED),
    )
    if (size, backbone, sfam) == (512, "vgg16", False):
        figures += (Figure("values", 132_704_564, _MINDSPORE),)
    return Published(f"m2det{size}_{backbone}", 80, figures, {"sfam": True} if sfam else {})


def _classes(count: int, parameters: int) -> Published:
    figures = (
        Figure("parameters", parameters, _RELEASED),
        Figure("state_entries", 887, _RELEASED),
    )
    return Published("m2det512_vgg16", count, figures)


PUBLISHED = (
    *(_network(size, backbone, sfam=False) for size in _PRIORS for backbone in _COUNTS),
    *(_network(512, backbone, sfam=True) for backbone in _COUNTS),
    _classes(20, 92_817_860),
    _classes(1, 80_209_688),
)
