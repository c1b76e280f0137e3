"""Typed configuration of the SSD family: a variant names a published recipe, fields change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from detectors.config import (
    DetectorConfig,
    FocalLossConfig,
    MultiBoxLossConfig,
    PostprocessConfig,
)

Variant = Literal["ssd300_mobilenet_v2", "ssd300_vgg16", "ssd512_vgg16"]
Priors = Literal["mindspore", "coco", "voc"]

_VGG16: dict[str, Any] = {
    "bn_momentum": None,
    "bn_eps": None,
    "priors": "coco",
    "loss": {"name": "multibox"},
    "postprocess": {
        "score_threshold": 0.01,
        "nms": "hard",
        "iou_threshold": 0.45,
        "top_k_per_class": 400,
        "max_per_class": None,
        "max_per_image": 200,
    },
}

_PRESETS: dict[str, dict[str, Any]] = {
    "ssd300_mobilenet_v2": {
        "bn_momentum": 0.03,
        "bn_eps": 1e-3,
        "priors": "mindspore",
        "loss": {"name": "focal"},
        "postprocess": {
            "score_threshold": 0.1,
            "nms": "hard",
            "iou_threshold": 0.6,
            "plus_one": True,
            "max_per_class": 100,
            "max_per_image": None,
        },
    },
    "ssd300_vgg16": _VGG16,
    "ssd512_vgg16": _VGG16,
}

_PRIORS: dict[str, tuple[Priors, ...]] = {
    "ssd300_mobilenet_v2": ("mindspore",),
    "ssd300_vgg16": ("coco", "voc"),
    "ssd512_vgg16": ("coco", "voc"),
}


class SSDConfig(DetectorConfig):
    """Single Shot MultiBox Detector (Liu et al., ECCV 2016).

    A field that is not given takes the value of the variant's published recipe, also inside
    ``loss`` and ``postprocess``; the validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: network and recipe. ``ssd300_mobilenet_v2`` is the MindSpore model zoo's, the
            ``vgg16`` ones are the original's.
        width: factor on every channel count, rounded to multiples of 8. Anything but 1 is a network
            of our own, and :attr:`title` says so.
        bn_momentum: weight of the new batch in the running statistics, torch's convention
            (MindSpore writes 0.97 for 0.03); None where the network has no batch normalisation.
        bn_eps: added to the variance in batch normalisation; None as above.
        priors: whose prior boxes; ``coco`` and ``voc`` differ in their sizes.
        loss: classification and box loss, and the matching behind them.
        postprocess: how candidates become detections.
    """

    builder = "detectors.ssd.build:build_ssd"
    published = "detectors.ssd.published:PUBLISHED"
    presets = _PRESETS

    name: Literal["ssd"] = "ssd"
    variant: Variant = "ssd300_mobilenet_v2"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] | None = 0.03
    bn_eps: Annotated[float, Field(gt=0.0)] | None = 1e-3
    priors: Priors = "mindspore"
    loss: Annotated[FocalLossConfig | MultiBoxLossConfig, Field(discriminator="name")] = (
        FocalLossConfig()
    )
    postprocess: PostprocessConfig = PostprocessConfig()

    @field_validator("bn_momentum", "bn_eps")
    @classmethod
    def _only_with_batch_norm(cls, value: float | None, info: ValidationInfo) -> float | None:
        preset = cls.presets.get(info.data.get("variant", ""))
        if preset is not None and (value is None) != (preset["bn_eps"] is None):
            has = "has no" if preset["bn_eps"] is None else "needs a value for its"
            raise ValueError(f"{info.data['variant']} {has} batch normalisation")
        return value

    @field_validator("priors")
    @classmethod
    def _priors_of_the_variant(cls, value: Priors, info: ValidationInfo) -> Priors:
        allowed = _PRIORS.get(info.data.get("variant", ""), (value,))
        if value not in allowed:
            names = " or ".join(allowed)
            raise ValueError(f"{info.data['variant']} is laid out for {names}, not for {value}")
        return value

    def prior_choices(self, ratios: Sequence[Sequence[float]]) -> Mapping[str, Sequence[Any]]:
        """The sizes that the variant is laid out for."""
        return {"priors": [one for one in _PRIORS[self.variant] if one != self.priors]}

    def differences(self) -> Iterator[str]:
        """A width other than 1."""
        if self.width != 1.0:
            yield f"at width {self.width:g}"
