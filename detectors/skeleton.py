"""A detector without memory for its tensors, of which all but values can be asked at once."""

from __future__ import annotations

import torch

from detectors.base import Detector
from detectors.config import DetectorConfig
from detectors.registry import build_detector


def skeleton(config: DetectorConfig, *, num_classes: int) -> Detector:
    """The detector on torch's meta device, where tensors have shape and type only."""
    with torch.device("meta"):
        return build_detector(config, num_classes=num_classes)
