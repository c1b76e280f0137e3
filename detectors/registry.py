"""Every detector there is. To add one: its file, its line in each of the two tables below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeAlias

from pydantic import Field

from detectors.base import Detector, DetectorConfig
from detectors.m2det.config import M2DetConfig
from detectors.m2det.detector import M2Det
from detectors.ssd.build import build_ssd
from detectors.ssd.config import SSDConfig

#: Type of the ``detector`` field of an experiment.
AnyDetectorConfig: TypeAlias = Annotated[SSDConfig | M2DetConfig, Field(discriminator="name")]

#: Configuration class and builder of each detector, by the ``name`` in its configuration.
DETECTORS: dict[str, tuple[type[DetectorConfig], Callable[..., Detector]]] = {
    "m2det": (M2DetConfig, M2Det.from_config),
    "ssd": (SSDConfig, build_ssd),
}


def build_detector(config: DetectorConfig, *, num_classes: int) -> Detector:
    """A freshly initialised detector.

    Args:
        config: validated configuration of one of :data:`DETECTORS`.
        num_classes: foreground classes, the length of the label map.

    Raises:
        ValueError: fewer than one class.
    """
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one foreground class, got {num_classes}")
    _, build = DETECTORS[config.name]
    return build(config, num_classes=num_classes)
