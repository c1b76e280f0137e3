"""Typed configuration of M2Det: a variant names a published network, fields change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, model_validator

from detectors.base import DetectorConfig
from detectors.objectives import MultiBoxLossConfig
from detectors.postprocess import PostprocessConfig

#: Input sizes the priors are published for.
Size: TypeAlias = Literal[320, 512, 704, 800]

Backbone: TypeAlias = Literal["vgg16", "resnet50", "resnet101"]

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


class M2DetConfig(DetectorConfig):
    """M2Det (Zhao et al., AAAI 2019).

    Fields of ``postprocess`` that are not given take the released evaluation's values; the
    validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: input size and backbone.
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
    """

    name: Literal["m2det"] = "m2det"
    variant: Variant = "m2det512_vgg16"
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    levels: Annotated[int, Field(ge=2, le=16)] = PUBLISHED_LEVELS
    sfam: bool = False
    initialization: Literal["released", "mindspore"] = "released"
    loss: MultiBoxLossConfig = MultiBoxLossConfig()
    postprocess: PostprocessConfig = PostprocessConfig(**_POSTPROCESS)

    @model_validator(mode="before")
    @classmethod
    def _fill_in_postprocess(cls, given: Any) -> Any:
        """Lay the given fields of ``postprocess`` over the released ones."""
        if isinstance(given, Mapping) and isinstance(given.get("postprocess"), Mapping):
            return {**given, "postprocess": {**_POSTPROCESS, **given["postprocess"]}}
        return given

    @property
    def size(self) -> Size:
        """Height and width of the input."""
        return cast(Size, int(self.variant.partition("_")[0].removeprefix("m2det")))

    @property
    def backbone(self) -> Backbone:
        """What the features come from."""
        return cast(Backbone, self.variant.partition("_")[2])

    @property
    def title(self) -> str:
        """Name for people; what differs from the published network is part of it."""
        changes = []
        if self.width != 1.0:
            changes.append(f"at width {self.width:g}")
        if self.levels != PUBLISHED_LEVELS:
            changes.append(f"with {self.levels} levels")
        if self.sfam:
            changes.append("with SFAM")
        return " ".join([self.variant, *changes])
