"""Figures of RetinaNet on SpineNet.

Multiply-adds of the convolutions alone. The paper's (85.4 G for SpineNet-49 at 640) are those with
91 classes, to 0.2 %, for all but the 49S, whose 12.0 M parameters and 33.8 G no released code
reproduces.
"""

from __future__ import annotations

from detectors.figures import Figure, Published

_COUNTED = "yan-roo/SpineNet-Pytorch's backbone with the seed's head, built and counted"
_PRIORS = "nine anchors for each cell of P3 to P7, paper's input size"


def _network(
    name: str, parameters: int, more_parameters: int, giga: float, more_giga: float, priors: int
) -> tuple[Published, Published]:
    """Counts with the 80 classes of COCO and with the 91 that the paper's figures have."""
    variant = f"retinanet_spinenet{name}"
    return (
        Published(
            variant,
            80,
            (
                Figure("parameters", parameters, _COUNTED),
                Figure("multiply_adds", giga * 1e9, _COUNTED, within=0.5e7),
                Figure("priors", priors, _PRIORS),
            ),
        ),
        Published(
            variant,
            91,
            (
                Figure("parameters", more_parameters, _COUNTED),
                Figure("multiply_adds", more_giga * 1e9, _COUNTED, within=0.5e7),
            ),
        ),
    )


PUBLISHED = (
    *_network("49s", 11_150_771, 11_264_918, 29.81, 30.78, 76_725),
    *_network("49", 28_313_140, 28_541_335, 83.34, 85.28, 76_725),
    Published(
        "retinanet_spinenet49",
        80,
        (Figure("multiply_adds", 163.34e9, _COUNTED, within=0.5e7),),
        fields={"input_size": (896, 896)},
    ),
    *_network("96", 42_744_628, 42_972_823, 260.05, 265.02, 196_416),
    *_network("143", 66_729_268, 66_957_463, 515.56, 523.34, 306_900),
    *_network("190", 163_173_892, 163_630_183, 1866.10, 1881.66, 306_900),
)
