"""Figures of M2Det.

The input size changes the priors only. Entries of the state dict list the shared reduction under
eight names and count the batches of every normalisation layer. The ResNet variants keep their
classifier, as the released code does, and it is among their parameters.

The paper's ablation quotes 98.9 M parameters for eight modules, which no released code has.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_CODE = "VDIGPKU/M2Det, built and counted"
_ZOO = "mindspore-ai/models, research/cv/m2det, built and counted"
_PRIORS = {320: 12_810, 512: 32_760, 704: 62_022, 800: 80_208}

#: Parameters, their tensors and entries of the state dict with 80 classes, without and with SFAM.
_COUNTS = {
    "vgg16": ((132_633_140, 449, 887), (133_159_604, 453, 911)),
    "resnet50": ((138_230_556, 580, 1177), (138_757_020, 584, 1201)),
    "resnet101": ((157_222_684, 733, 1483), (157_749_148, 737, 1507)),
}


def _counts(backbone: str, *, sfam: bool) -> tuple[Figure, ...]:
    parameters, tensors, entries = _COUNTS[backbone][sfam]
    return (
        Figure("parameters", parameters, _CODE),
        Figure("parameter_tensors", tensors, _CODE),
        Figure("state_entries", entries, _CODE),
    )


PUBLISHED = (
    *(
        Published(
            f"m2det{size}_{backbone}",
            80,
            (*_counts(backbone, sfam=False), Figure("priors", priors, _CODE)),
        )
        for size, priors in _PRIORS.items()
        for backbone in _COUNTS
    ),
    *(
        Published(f"m2det512_{backbone}", 80, _counts(backbone, sfam=True), fields={"sfam": True})
        for backbone in _COUNTS
    ),
    Published("m2det512_vgg16", 20, (Figure("parameters", 92_817_860, _CODE),)),
    Published(
        "m2det512_vgg16",
        1,
        (Figure("parameters", 80_209_688, _CODE), Figure("state_entries", 887, _CODE)),
    ),
    Published(
        "m2det512_vgg16",
        80,
        (Figure("values", 132_704_564, _ZOO),),
        fields={"initialization": "mindspore"},
    ),
)
