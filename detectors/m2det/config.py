"""Typed configuration of M2Det: a variant names a published network, fields change it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args

from pydantic import Field, model_validator
from typing_extensions import Self

from detectors.backbones.config import AnyBackboneConfig, check_fit
from detectors.config import DetectorConfig, MultiBoxLossConfig, PostprocessConfig

#: Input sizes the priors are published for.
Size: TypeAlias = Literal[320, 512, 704, 800]

PublishedBackbone: TypeAlias = Literal["vgg16", "resnet50", "resnet101"]

Variant = Literal[
    "m2det320_vgg16",
    "m2det320_resnet50",
    "m2det320_resnet101",
    "m2det512_vgg16",
    "m2det512_resnet50",
    "m2det512_resnet101",
    "m2det704_vgg16",
    "m2det704_resnet50",
    "m2det704_resnet101",
    "m2det800_vgg16",
    "m2det800_resnet50",
    "m2det800_resnet101",
]

#: Levels of the published pyramid.
PUBLISHED_LEVELS = 8

#: The released evaluation: linear Soft-NMS. Its call hands 0.45 to ``sigma``, which linear decay
#: does not read, and leaves the IoU threshold at 0.3.
_POSTPROCESS: dict[str, Any] = {
    "score_threshold": 0.1,
    "nms": "soft_linear",
    "iou_threshold": 0.3,
    "soft_score_threshold": 0.001,
    "plus_one": True,
    "max_per_class": 50,
    "max_per_image": None,
}

_PRESETS: dict[str, dict[str, Any]] = {
    variant: {"postprocess": _POSTPROCESS} for variant in get_args(Variant)
}


class M2DetConfig(DetectorConfig):
    """M2Det (Zhao et al., AAAI 2019).

    Fields of ``postprocess`` that are not given take the released evaluation's values; the
    validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: input size, and backbone where ``backbone`` names none.
        width: factor on every channel count, rounded to multiples of 8. Anything but 1 is a network
            of our own, and :attr:`title` says so.
        levels: Thinned U-shape Modules one after the other. Anything but 8 is a network of our own.
        sfam: weigh the channels of each scale by the Scale-wise Feature Aggregation Module of the
            paper. No released weights and no published configuration of the code have it.
        initialization: of everything but the backbone. ``released``: He's normal for the pyramid
            and torch's default for the heads (VDIGPKU/M2Det). ``mindspore``: a normal of deviation
            0.001 for both (mindspore-ai/models).
        loss: classification and box loss, and the matching behind them.
        postprocess: how candidates become detections.
        backbone: what the features come from instead of the variant's own: any that hands out maps
            of stride 8 and 16.
    """

    builder = "detectors.m2det.detector:M2Det"
    published = "detectors.m2det.published:PUBLISHED"
    presets = _PRESETS

    name: Literal["m2det"] = "m2det"
    variant: Variant = "m2det512_vgg16"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    levels: Annotated[int, Field(ge=2, le=16)] = PUBLISHED_LEVELS
    sfam: bool = False
    initialization: Literal["released", "mindspore"] = "released"
    loss: MultiBoxLossConfig = MultiBoxLossConfig()
    postprocess: PostprocessConfig
    backbone: AnyBackboneConfig | None = None

    @model_validator(mode="after")
    def _backbone_fits(self) -> Self:
        size = (self.size, self.size)
        check_fit(self, self.backbone, strides=(8, 16), size=size, replaced=())
        return self

    @property
    def size(self) -> Size:
        """Height and width of the input."""
        return cast(Size, int(self.variant.partition("_")[0].removeprefix("m2det")))

    @property
    def published_backbone(self) -> PublishedBackbone:
        """What the features of the variant come from."""
        return cast(PublishedBackbone, self.variant.partition("_")[2])

    def differences(self) -> Iterator[str]:
        """Another backbone, width or number of levels, and SFAM."""
        if self.backbone is not None:
            yield f"on {self.backbone.title}"
        if self.width != 1.0:
            yield f"at width {self.width:g}"
        if self.levels != PUBLISHED_LEVELS:
            yield f"with {self.levels} levels"
        if self.sfam:
            yield "with SFAM"
