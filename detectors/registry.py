"""Every detector there is."""

from __future__ import annotations

from typing import TypeAlias

from detectors.ssd.config import SSDConfig

#: Type of the ``detector`` field of an experiment.
AnyDetectorConfig: TypeAlias = SSDConfig
