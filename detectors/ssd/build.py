"""From a configuration of the family to one of its networks."""

from __future__ import annotations

from detectors.single_shot import SingleShot
from detectors.ssd.config import SSDConfig
from detectors.ssd.mobilenet_v2 import SSDMobileNetV2
from detectors.ssd.vgg import SSDVGG16


def build_ssd(config: SSDConfig, *, num_classes: int) -> SingleShot:
    """A freshly initialised network of the configured variant."""
    network = SSDMobileNetV2 if config.variant == "ssd300_mobilenet_v2" else SSDVGG16
    return network(config, num_classes=num_classes)
