"""Whether what is built is what was published: every detector's figures against the network.

A detector's folder keeps its figures in ``published.py``; its line below makes them known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from detectors.faster_rcnn import published as faster_rcnn
from detectors.figures import Figure, Published
from detectors.m2det import published as m2det
from detectors.measure import Measured, measure
from detectors.registry import variant_config
from detectors.retinanet import published as retinanet
from detectors.ssd import published as ssd

#: Figures of each detector in :data:`detectors.registry.DETECTORS`.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "faster_rcnn": faster_rcnn.PUBLISHED,
    "m2det": m2det.PUBLISHED,
    "retinanet": retinanet.PUBLISHED,
    "ssd": ssd.PUBLISHED,
}


@dataclass(frozen=True)
class Verdict:
    """A published figure beside the built one.

    Attributes:
        network: title of the network.
        figure: as published.
        built: as counted.
    """

    network: str
    figure: Figure
    built: int

    @property
    def agrees(self) -> bool:
        """Whether the two are equal, to the digits that were published."""
        return abs(self.built - self.figure.value) <= self.figure.within


def verdicts(networks: Iterable[Published]) -> Iterator[Verdict]:
    """Build and count each network, one verdict for each of its figures."""
    for network in networks:
        config = variant_config(network.variant, **network.fields)
        built: Measured = measure(config, num_classes=network.num_classes)
        for figure in network.figures:
            yield Verdict(network.title, figure, getattr(built, figure.name))
