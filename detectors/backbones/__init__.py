"""Networks from images to feature maps, and the one way to make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detectors.plugins import load_object

if TYPE_CHECKING:
    from detectors.backbones.config import BackboneConfig
    from detectors.backbones.layers import Backbone


def build_backbone(config: BackboneConfig) -> Backbone:
    """A freshly initialised backbone, its code imported first."""
    backbone: Backbone = load_object(config.builder)(config)
    return backbone


def make_backbone(name: str, **fields: Any) -> Backbone:
    """A freshly initialised backbone by its name.

    Args:
        name: one of :func:`detectors.backbones.config.backbones`.
        fields: of its configuration, other than the defaults.

    Raises:
        KeyError: there is no such backbone.
        pydantic.ValidationError: a field is unknown or its value not allowed.
    """
    from detectors.backbones.config import backbone_config

    return build_backbone(backbone_config(name, **fields))
