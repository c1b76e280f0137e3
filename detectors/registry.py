"""Every detector there is, from this package and from others that are installed.

To add one here: its folder and its line in ``_OWN``. From another package: an entry point of the
group ``orchestrator.detectors`` that names its configuration class; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, get_args

from detectors.config import DetectorConfig
from detectors.faster_rcnn.config import FasterRCNNConfig
from detectors.m2det.config import M2DetConfig
from detectors.plugins import ByName, load_object, offered
from detectors.retinanet.config import RetinaNetConfig
from detectors.ssd.config import SSDConfig

if TYPE_CHECKING:
    from detectors.base import Detector

_OWN: tuple[type[DetectorConfig], ...] = (
    FasterRCNNConfig,
    M2DetConfig,
    RetinaNetConfig,
    SSDConfig,
)


class Registered(NamedTuple):
    """A detector that experiments can name.

    Attributes:
        config: its configuration class.
        build: makes it from a configuration and ``num_classes``, importing its code first.
    """

    config: type[DetectorConfig]
    build: Callable[..., Detector]


def _build(config: DetectorConfig, *, num_classes: int) -> Detector:
    detector: Detector = load_object(config.builder)(config, num_classes=num_classes)
    return detector


def _name(config: type[DetectorConfig]) -> str:
    (name,) = get_args(config.model_fields["name"].annotation)
    return str(name)


_OFFERED = offered(
    "orchestrator.detectors", DetectorConfig, {_name(config): config for config in _OWN}
)

#: Detectors by the ``name`` in their configuration.
DETECTORS: dict[str, Registered] = {
    name: Registered(config, _build) for name, config in _OFFERED.classes.items()
}


def broken_detectors() -> dict[str, str]:
    """Why detectors of other packages cannot be used, by the names of their entry points."""
    return {name: str(error) for name, error in _OFFERED.broken.items()}


#: Type of the ``detector`` field of an experiment.
AnyDetectorConfig: TypeAlias = Annotated[DetectorConfig, ByName(lambda: _OFFERED)]


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
        ValueError: fewer than one class, or weights of classes that do not fit.
    """
    if num_classes < 1:
        raise ValueError(f"a detector needs at least one foreground class, got {num_classes}")
    detector = DETECTORS[config.name].build(config, num_classes=num_classes)
    if config.class_weights is not None:
        detector.weigh_classes(config.class_weights)
    return detector
