"""The augmentations of ``data.augmentation``: their fields, and where the code of each lies.

A class of :mod:`orchestrator.data.augment` extends its section here by what it does with an image,
so every field, default and limit stands in one place. Installed packages add sections of their own,
see docs/extending.md.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from detectors.config import Settings
from detectors.plugins import ByName, Offered, offered
from orchestrator.config.fields import Conflict, Count, Fraction, refuse


class AugmentationSettings(Settings):
    """What every section of an augmentation has, beside its ``name``."""

    #: ``module:class`` of what does it: an extension of the section by ``size``, see
    #: :class:`orchestrator.data.augment.Augment`. Imported where images are made, and not before.
    builder: ClassVar[str]


class ImageAugmentationSettings(Settings):
    """What every section of an augmentation has that leaves the image's size to the next."""

    #: ``module:class`` of what does it: an extension of the section, see
    #: :class:`orchestrator.data.augment.ImageAugment`.
    builder: ClassVar[str]


class SSDAugmentation(AugmentationSettings):
    """Random crop, horizontal flip and colour of the MindSpore SSD recipe, then a plain resize.

    Attributes:
        name: selects this augmentation.
        min_ious: one is drawn per image: the crop must overlap the boxes by at least this IoU, or
            null for no crop.
        crop_attempts: crops tried per image before the whole image is used.
        min_crop: smallest width and height of a crop, as a fraction of the image's.
        flip_probability: of a horizontal flip.
        brightness: factor drawn from [1 - brightness, 1 + brightness].
        contrast: factor drawn from [1 - contrast, 1 + contrast].
        saturation: factor drawn from [1 - saturation, 1 + saturation].
        crop_overlap_rule: ``span`` refuses a crop whose smallest IoU is below the bound and whose
            largest is above bound + 0.2 (mindspore-ai/models); ``min`` looks at the smallest
            alone (the first release).
    """

    builder: ClassVar[str] = "orchestrator.data.augment.ssd:SSDAugment"
    name: Literal["ssd"] = "ssd"
    min_ious: Annotated[tuple[Fraction | None, ...], Field(min_length=1)] = (
        None,
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
    )
    crop_attempts: Count = 50
    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    flip_probability: Fraction = 0.5
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    crop_overlap_rule: Literal["span", "min"] = "span"


_Level = Annotated[int, Field(ge=0, le=255)]


class ResizePadAugmentation(AugmentationSettings):
    """Resize with the aspect ratio kept and pad, in training and evaluation, for Faster R-CNN.

    In training a random zoom-out and a horizontal flip come on top. The defaults are those of the
    MindSpore Faster R-CNN recipe.

    Attributes:
        name: selects this augmentation.
        short_side: the shorter side of an image is made no longer than this; null: as long as fits
            the network's input.
        long_side: the longer side, likewise.
        fill: red, green and blue around the image.
        legacy_boxes: box coordinates name the first and the last pixel inside; as in the detector.
        expand_probability: of putting the image on a larger, filled one before it is resized.
        expand_ratio: that one is up to so many times as wide and high.
        flip_probability: of a horizontal flip.
    """

    builder: ClassVar[str] = "orchestrator.data.augment.resize_pad:ResizePad"
    name: Literal["resize_pad"] = "resize_pad"
    short_side: Count | None = None
    long_side: Count | None = None
    fill: tuple[_Level, _Level, _Level] = (0, 0, 0)
    legacy_boxes: bool = True
    expand_probability: Fraction = 0.5
    expand_ratio: Annotated[float, Field(ge=1.0)] = 4.0
    flip_probability: Fraction = 0.5


class ScaleJitterAugmentation(AugmentationSettings):
    """Resize with the aspect ratio kept and pad, in training and evaluation, for RetinaNet.

    In training the size is drawn, what does not fit the network's input is cut off, and a
    horizontal flip comes on top. The defaults are those of SpineNet-Pytorch up to SpineNet-96.

    Attributes:
        name: selects this augmentation.
        min_scale: smallest size of an image, as a multiple of the one that just fits the input.
        max_scale: largest size; with both at 1 no image is cut, as in the MindSpore port.
        fill: red, green and blue around the image.
        flip_probability: of a horizontal flip.
    """

    builder: ClassVar[str] = "orchestrator.data.augment.scale_jitter:ScaleJitter"
    name: Literal["scale_jitter"] = "scale_jitter"
    min_scale: Annotated[float, Field(gt=0.0, le=8.0)] = 0.5
    max_scale: Annotated[float, Field(gt=0.0, le=8.0)] = 2.0
    fill: tuple[_Level, _Level, _Level] = (0, 0, 0)
    flip_probability: Fraction = 0.5

    @model_validator(mode="after")
    def _scales_in_order(self) -> Self:
        if self.min_scale > self.max_scale:
            message = (
                f"data.augmentation.min_scale is {self.min_scale:g} and must not be above "
                f"data.augmentation.max_scale, which is {self.max_scale:g}"
            )
            refuse([Conflict("min_scale", message)])
        return self


class M2DetAugmentation(AugmentationSettings):
    """Crop, colour, zoom-out, flip and randomly interpolated resize of M2Det, kin to SSD's.

    Attributes:
        name: selects this augmentation.
        min_ious: one is drawn per image: every box must overlap the crop by at least this IoU;
            null crops without a bound, ``whole`` does not crop.
        min_crop: smallest scale of a crop.
        brightness: grey levels added, drawn from [-brightness, brightness]; this and the following
            three each for half of the images.
        contrast: factor drawn from [1 - contrast, 1 + contrast].
        hue: added, in steps of two degrees, drawn from -hue .. hue.
        saturation: factor drawn from [1 - saturation, 1 + saturation].
        expand_probability: of putting the image on a larger, filled one.
        expand_ratio: largest scale of that one.
        fill: red, green and blue of it.
        flip_probability: of a horizontal flip.
        min_box: boxes whose width or height is no more than this fraction of the input are dropped.
    """

    builder: ClassVar[str] = "orchestrator.data.augment.m2det:M2DetAugment"
    name: Literal["m2det"] = "m2det"
    min_ious: Annotated[tuple[Fraction | Literal["whole"] | None, ...], Field(min_length=1)] = (
        "whole",
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
        None,
    )
    min_crop: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    brightness: Annotated[float, Field(ge=0.0, le=255.0)] = 32.0
    contrast: Fraction = 0.5
    hue: Annotated[int, Field(ge=0, le=90)] = 18
    saturation: Fraction = 0.5
    expand_probability: Fraction = 0.6
    expand_ratio: Annotated[float, Field(ge=1.0, le=8.0)] = 4.0
    fill: tuple[_Level, _Level, _Level] = (123, 117, 104)
    flip_probability: Fraction = 0.5
    min_box: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01


class NoAugmentation(AugmentationSettings):
    """A plain resize to the network's input size.

    Attributes:
        name: selects it.
    """

    builder: ClassVar[str] = "orchestrator.data.augment.plain:PlainResize"
    name: Literal["none"] = "none"


class PhotometricAugmentation(ImageAugmentationSettings):
    """Brightness, contrast, hue and saturation, each for half of the images, as in M2Det and SSD.

    Attributes:
        name: selects this augmentation.
        brightness: grey levels added, drawn from [-brightness, brightness].
        contrast: factor drawn from [1 - contrast, 1 + contrast].
        hue: added, in steps of two degrees, drawn from -hue .. hue.
        saturation: factor drawn from [1 - saturation, 1 + saturation].
    """

    builder: ClassVar[str] = "orchestrator.data.augment.photometric:Photometric"
    name: Literal["photometric"] = "photometric"
    brightness: Annotated[float, Field(ge=0.0, le=255.0)] = 32.0
    contrast: Fraction = 0.5
    hue: Annotated[int, Field(ge=0, le=90)] = 18
    saturation: Fraction = 0.5


#: Augmentations that bring images to the network's size, by name.
_SIZING = offered(
    "orchestrator.augmentations",
    AugmentationSettings,
    {
        "ssd": SSDAugmentation,
        "m2det": M2DetAugmentation,
        "resize_pad": ResizePadAugmentation,
        "scale_jitter": ScaleJitterAugmentation,
        "none": NoAugmentation,
    },
)
#: Augmentations that leave that to the next one.
_STEPS = offered(
    "orchestrator.image_augmentations",
    ImageAugmentationSettings,
    {"photometric": PhotometricAugmentation},
)


class ChainAugmentation(AugmentationSettings):
    """Several augmentations, one after the other; a list in ``data.augmentation`` stands for it.

    Attributes:
        name: selects it.
        steps: what is done to the image in its own size, in this order.
        last: what brings it to the network's size.
    """

    builder: ClassVar[str] = "orchestrator.data.augment.chain:Chain"
    name: Literal["chain"] = "chain"
    steps: tuple[Annotated[ImageAugmentationSettings, ByName(lambda: _STEPS)], ...]
    last: Annotated[AugmentationSettings, ByName(lambda: _SIZING)]


#: Type of the ``data.augmentation`` field.
Augmentation: TypeAlias = Annotated[
    AugmentationSettings,
    ByName(
        lambda: Offered({**_SIZING.classes, "chain": ChainAugmentation}, _SIZING.broken),
    ),
]
