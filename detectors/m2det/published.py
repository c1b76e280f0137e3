"""Figures of M2Det.

Parameters are those of 80 classes and a background without scale-wise attention, as the checkpoints
were released; they do not depend on the size of the input.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_RELEASED = "qijiezhao/M2Det, built and counted"

_PRIORS = {320: 12_810, 512: 32_760, 704: 62_022, 800: 80_208}

#: Parameters, tensors of them and entries of the state dict, where the eight references to the one
#: shared reduction are listed each.
_BACKBONES = {
    "vgg16": (132_633_140, 449, 887),
    "resnet50": (138_230_556, 580, 1177),
    "resnet101": (157_222_684, 733, 1483),
}


def _coco(size: int, backbone: str) -> Published:
    parameters, tensors, entries = _BACKBONES[backbone]
    return Published(
        f"m2det{size}_{backbone}",
        80,
        (
            Figure("parameters", parameters, _RELEASED),
            Figure("parameter_tensors", tensors, _RELEASED),
            Figure("state_entries", entries, _RELEASED),
            Figure("priors", _PRIORS[size], _RELEASED),
        ),
    )


PUBLISHED = (
    *(_coco(size, backbone) for size in _PRIORS for backbone in _BACKBONES),
    Published("m2det512_vgg16", 20, (Figure("parameters", 92_817_860, _RELEASED),)),
    Published("m2det512_vgg16", 1, (Figure("parameters", 80_209_688, _RELEASED),)),
)
