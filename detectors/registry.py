"""Every detector there is. To add one: its file, its line in each of the two tables below."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias, get_args

from pydantic import Field

from detectors.base import Detector, DetectorConfig
from detectors.faster_rcnn.config import FasterRCNNConfig
from detectors.faster_rcnn.detector import build_faster_rcnn
from detectors.m2det.config import M2DetConfig
from detectors.m2det.detector import M2Det
from detectors.retinanet.config import RetinaNetConfig
from detectors.retinanet.detector import build_retinanet
from detectors.ssd.build import build_ssd
from detectors.ssd.config import SSDConfig

#: Type of the ``detector`` field of an experiment.
AnyDetectorConfig: TypeAlias = Annotated[
    FasterRCNNConfig | M2DetConfig | RetinaNetConfig | SSDConfig, Field(discriminator="name")
]

#: Configuration class and builder of each detector, by the ``name`` in its configuration.
DETECTORS: dict[str, tuple[type[DetectorConfig], Callable[..., Detector]]] = {
    "faster_rcnn": (FasterRCNNConfig, build_faster_rcnn),
    "m2det": (M2DetConfig, M2Det.from_config),
    "retinanet": (RetinaNetConfig, build_retinanet),
    "ssd": (SSDConfig, build_ssd),
}


def variants() -> dict[str, type[DetectorConfig]]:
    """Configuration class of every published variant, by the name of the variant.

    A detector without variants is listed under its own name.
    """
    found: dict[str, type[DetectorConfig]] = {}
    for name, (config_class, _) in DETECTORS.items():
        field = config_class.model_fields.get("variant")
        found |= dict.fromkeys(get_args(field.annotation) if field else (name,), config_class)
    return found


def variant_config(variant: str, **fields: Any) -> DetectorConfig:
    """Configuration of a published variant.

    Args:
        variant: one of :func:`variants`.
        fields: values other than the published ones.

    Raises:
        KeyError: there is no such variant.
    """
    config_class = variants()[variant]
    if "variant" in config_class.model_fields:
        fields["variant"] = variant
    return config_class(**fields)


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
