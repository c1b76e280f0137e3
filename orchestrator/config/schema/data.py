"""The ``data`` section: where images and boxes come from and how they are prepared."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, ValidationInfo, WithJsonSchema, field_validator, model_validator
from pydantic_core import PydanticKnownError
from typing_extensions import Self

from detectors.settings import Settings
from orchestrator.config.schema.fields import Conflict, Count, Folder, Fraction, Location, refuse

#: A place that may be left out where shards are named; then it is null.
_Unless: TypeAlias = Annotated[
    Location | None,
    Field(validate_default=True),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


class SplitConfig(Settings):
    """One part of the data set: images and annotations, or shards. Paths are relative to ``root``.

    With all three, the annotations say what the shards must hold: shards of annotations that have
    changed since are refused.

    Attributes:
        images: folder that the file names in the annotations are relative to.
        annotations: what holds the boxes, by ``data.format``: coco, the JSON file; voc, an image
            set such as ``ImageSets/Main/train.txt``, or a folder of XML files; txt, the text file;
            yolo, a folder of label files, or a text file that lists images.
        shards: folder that ``orchestrator shard`` wrote, a path or ``s3://bucket/prefix``.
    """

    # Before the others, whose checks look at it.
    shards: Location | None = None
    images: _Unless = None
    annotations: _Unless = None

    @property
    def files(self) -> tuple[str, str] | None:
        """``images`` and ``annotations``; None where there are only shards."""
        if self.images is None or self.annotations is None:
            return None
        return self.images, self.annotations

    @field_validator("images", "annotations")
    @classmethod
    def _needed_without_shards(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("shards") is None:
            raise PydanticKnownError("missing")
        return value

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        given = {"images": self.images, "annotations": self.annotations}
        if self.files is None:
            refuse(
                Conflict(name, f"required key is missing; {other} needs it")
                for name, other in (("images", "annotations"), ("annotations", "images"))
                if given[other] is not None
            )
        return self


class SSDAugmentation(Settings):
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


class ResizePadAugmentation(Settings):
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

    name: Literal["resize_pad"] = "resize_pad"
    short_side: Count | None = None
    long_side: Count | None = None
    fill: tuple[_Level, _Level, _Level] = (0, 0, 0)
    legacy_boxes: bool = True
    expand_probability: Fraction = 0.5
    expand_ratio: Annotated[float, Field(ge=1.0)] = 4.0
    flip_probability: Fraction = 0.5


class ScaleJitterAugmentation(Settings):
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


class M2DetAugmentation(Settings):
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


class NoAugmentation(Settings):
    """A plain resize to the network's input size.

    Attributes:
        name: selects it.
    """

    name: Literal["none"] = "none"


Augmentation: TypeAlias = Annotated[
    SSDAugmentation
    | M2DetAugmentation
    | ResizePadAugmentation
    | ScaleJitterAugmentation
    | NoAugmentation,
    Field(discriminator="name"),
]


class MixConfig(Settings):
    """Training samples made of several images, before ``augmentation`` is applied to them.

    Attributes:
        mosaic: probability of four images around a point, on twice the size of the input.
        mixup: probability of a second image laid over the first.
        share: weight of the first image in a mixup.
        until_epoch: from this epoch on, counted from 0, both are off; null: never.
    """

    mosaic: Fraction = 0.5
    mixup: Fraction = 0.0
    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    until_epoch: Count | None = None


class DataConfig(Settings):
    """The data set.

    Attributes:
        format: of the annotations: COCO JSON (also FiftyOne's ``labels.json``), Pascal VOC, one
            text file of ``path xmin,ymin,xmax,ymax,class ...``, or YOLO.
        root: folder that the paths of ``train`` and ``val`` are relative to, so that one override
            moves the whole set. Where neither of them is given, its layout is recognised and names
            both; a ``data.yaml`` may stand for the folder.
        classes: file with the name of one class a line, or a ``data.yaml``, for voc, txt and yolo;
            null takes ``classes.txt``, or what yolo has instead, or the names in voc's XML. COCO
            names its classes itself.
        train: images that are learnt from.
        val: images that are evaluated.
        augmentation: applied to training images; how it resizes holds for evaluation as well.
        mix: makes training samples of several images; null for none.
        crowd: whether crowd regions are training targets (evaluation always ignores them, as COCO
            defines).
        keep_empty: whether images without boxes take part in training, as negatives.
        max_boxes: G, box slots per image in a batch; null takes the largest count in ``train``,
            times the images that ``mix`` makes a sample of.
        max_bad_fraction: images that cannot be decoded are replaced, always by the same neighbour,
            and counted; above this fraction of the set the run stops.
        prefetch: batches in flight per worker.
        window: with shards, images among which the order of an epoch is mixed, so that shards are
            read one after the other; null mixes all, as without shards. See docs/data.md.
        cache: folder of each node, this user's alone, that manifests are kept in and shards of a
            bucket fetched to; null for one below the temporary folder.
    """

    format: Literal["coco", "voc", "txt", "yolo"] = "coco"
    root: Location = "."
    classes: Location | None = None
    train: SplitConfig
    val: SplitConfig
    augmentation: Augmentation = SSDAugmentation()
    mix: MixConfig | None = None
    crowd: Literal["exclude", "include"] = "exclude"
    keep_empty: bool = False
    max_boxes: Count | None = None
    max_bad_fraction: Fraction = 0.01
    prefetch: Count = 4
    window: Count | None = None
    cache: Folder | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.window is not None and self.train.shards is None:
            refuse(
                [
                    Conflict(
                        "window",
                        f"data.window is {self.window}, but data.train.shards names no shards; "
                        "remove data.window, or write shards with orchestrator shard",
                    )
                ]
            )
        if self.format == "coco" and self.classes is not None:
            refuse(
                [
                    Conflict(
                        "classes",
                        f"data.classes is {self.classes!r}, but with data.format coco the "
                        "annotations name the classes; remove data.classes",
                    )
                ]
            )
        return self
