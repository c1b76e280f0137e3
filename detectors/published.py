"""Whether what is built is what was published.

A detector with published figures lists them in a module of its own, which its configuration names;
one without has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from detectors.figures import Figure, Measured, Published
from detectors.measure import measure
from detectors.plugins import load_object
from detectors.registry import DETECTORS, variant_config


def published_networks(name: str) -> tuple[Published, ...]:
    """Networks of a detector whose figures are known, none for many."""
    place = DETECTORS[name].config.published
    return () if place is None else tuple(load_object(place))


@dataclass(frozen=True)
class Comparison:
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


def compare_with_published(networks: Iterable[Published]) -> Iterator[Comparison]:
    """Build and count each network, one comparison for each of its figures."""
    for network in networks:
        config = variant_config(network.variant, **network.fields)
        built: Measured = measure(config, num_classes=network.num_classes)
        for figure in network.figures:
            yield Comparison(network.title, figure, getattr(built, figure.name))
