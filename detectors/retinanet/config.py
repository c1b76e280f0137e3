"""Typed configuration of RetinaNet: a variant names a published recipe, fields change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, model_validator
from typing_extensions import Self

from detectors.backbones.config import (
    Activation,
    AnyBackboneConfig,
    Arch,
    Endpoints,
    SpineNetConfig,
    Width,
    check_fit,
)
from detectors.config import (
    Count,
    DetectorConfig,
    NonNegative,
    Positive,
    PostprocessConfig,
    Settings,
    Unit,
)

# The coarsest of the five maps has one cell for so many pixels, and finer ones must fit it.
_Size: TypeAlias = Annotated[int, Field(ge=128, multiple_of=128)]

Variant = Literal[
    "retinanet_spinenet49s",
    "retinanet_spinenet49",
    "retinanet_spinenet96",
    "retinanet_spinenet143",
    "retinanet_spinenet190",
]


class AnchorConfig(Settings):
    """Boxes at every cell of the five maps.

    Weights trained with other anchors are of no use with these.

    Attributes:
        base: side of the smallest square, in strides of its map.
        scales_per_octave: squares of growing side, the next one being twice the first.
        ratios: height / width, at constant area.
        offset: position of the centres in their cells, as a fraction of the stride: 0 in the
            MindSpore port and in mmdetection since version 2, 0.5 in tensorflow/tpu.
    """

    base: Positive = 3.0
    scales_per_octave: Count = 3
    # Lists are no longer JSON once a preset has laid itself under them.
    ratios: Annotated[tuple[Positive, ...], Field(min_length=1, strict=False)] = (0.5, 1.0, 2.0)
    offset: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class RetinaNetLossConfig(Settings):
    """Which anchors are examples of what, and what errors cost.

    Attributes:
        positive_iou: IoU with a box from which an anchor is positive.
        negative_iou: IoU with every box below which an anchor is negative; between, it is ignored.
        claims: whether a box also makes those anchors positive that it overlaps most.
        claim_iou: least IoU at which it does.
        border: anchors that reach beyond the input are ignored (MindSpore port), or learnt from
            like the others (SpineNet-Pytorch, tensorflow/tpu).
        alpha: weight of the target channel; every other channel weighs ``1 - alpha``.
        gamma: focusing exponent.
        beta: where the quadratic part of the box loss ends.
        cls_weight: factor on the classification loss.
        loc_weight: factor on the box loss.
    """

    positive_iou: Unit = 0.5
    negative_iou: Unit = 0.5
    claims: bool = True
    claim_iou: Unit = 1e-5
    border: Literal["ignore", "learn"] = "ignore"
    alpha: Unit = 0.25
    gamma: NonNegative = 2.0
    beta: Positive = 0.11
    cls_weight: NonNegative = 1.0
    loc_weight: NonNegative = 1.0

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RetinaNetLossConfig:
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou is {self.negative_iou:g}, above positive_iou, which is "
                f"{self.positive_iou:g}; one anchor would be both"
            )
        return self


_POSTPROCESS: dict[str, Any] = {
    "score_threshold": 0.05,
    "nms": "hard",
    "iou_threshold": 0.5,
    "max_per_image": 100,
}


def _preset(size: int, *, head_convs: int = 4, base: float = 3.0) -> dict[str, Any]:
    return {
        "input_size": (size, size),
        "head_convs": head_convs,
        "anchors": {"base": base},
        "loss": {},
        "postprocess": _POSTPROCESS,
    }


_PRESETS: dict[str, dict[str, Any]] = {
    "retinanet_spinenet49s": _preset(640),
    "retinanet_spinenet49": _preset(640),
    "retinanet_spinenet96": _preset(1024),
    "retinanet_spinenet143": _preset(1280, base=4.0),
    "retinanet_spinenet190": _preset(1280, base=4.0, head_convs=7),
}


class RetinaNetConfig(DetectorConfig):
    """RetinaNet (Lin et al., ICCV 2017), on SpineNet (Du et al., CVPR 2020) as published.

    A field that is not given takes the value of the variant's published recipe, also inside
    ``anchors``, ``loss`` and ``postprocess``; the validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: member of the SpineNet family, and the recipe it was published with.
        input_size: height and width, multiples of 128: the coarsest of the five maps has one cell
            for 128 pixels, and finer ones must fit it.
        width: factor on every channel count. Anything but 1 is a network of our own, and
            :attr:`title` says so.
        head_convs: convolutions of each tower before its predictor.
        activation: ``relu``, or ``silu`` as in the paper's longest schedule.
        endpoints: maps handed to the head: ``linear`` (SpineNet-Pytorch, MindSpore port) or
            ``activated`` (tensorflow/tpu).
        stochastic_depth: probability with which the convolutions of the last block are left out in
            training; earlier blocks have less. With the longest schedule 0.2, and 0.16 for 143.
        zero_init: begin with residual units that do nothing (SpineNet-Pytorch).
        bn_momentum: weight of the new batch in the running statistics, torch's convention.
        bn_eps: added to the variance in batch normalisation.
        anchors: boxes at every cell.
        loss: assignment and losses.
        candidates_per_level: pairs of anchor and class of each map that suppression gets to see,
            the best; null for all.
        postprocess: how candidates become detections.
        backbone: what the features come from instead of the variant's SpineNet: any that hands out
            a map of stride 8. Where its maps are no pyramid yet, one is built on them, of 256
            channels at width 1. ``endpoints``, ``stochastic_depth`` and ``zero_init`` are the
            SpineNet's and have no meaning then.
    """

    builder = "detectors.retinanet.detector:RetinaNet"
    published = "detectors.retinanet.published:PUBLISHED"
    presets = _PRESETS

    name: Literal["retinanet"] = "retinanet"
    variant: Variant = "retinanet_spinenet49"
    input_size: Annotated[tuple[_Size, _Size], Field(strict=False)]
    width: Width = 1.0
    head_convs: Count
    activation: Activation = "relu"
    endpoints: Endpoints = "linear"
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    zero_init: bool = True
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    bn_eps: Positive = 1e-3
    anchors: AnchorConfig
    loss: RetinaNetLossConfig
    candidates_per_level: Count | None = 1000
    postprocess: PostprocessConfig
    backbone: AnyBackboneConfig | None = None

    @model_validator(mode="after")
    def _backbone_fits(self) -> Self:
        own = ("endpoints", "stochastic_depth", "zero_init")
        check_fit(self, self.backbone, strides=(8,), size=self.input_size, replaced=own)
        return self

    def prior_choices(self, ratios: Sequence[Sequence[float]]) -> Mapping[str, Sequence[Any]]:
        """Sides of the smallest square, in strides, and the ratios of the data set."""
        bases = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
        return {
            "anchors.base": [base for base in bases if base != self.anchors.base],
            "anchors.ratios": [list(some) for some in ratios],
        }

    @property
    def arch(self) -> Arch:
        """Which SpineNet."""
        return cast(Arch, self.variant.removeprefix("retinanet_spinenet").upper())

    @property
    def own_backbone(self) -> SpineNetConfig:
        """The variant's SpineNet."""
        return SpineNetConfig(
            arch=self.arch,
            width=self.width,
            activation=self.activation,
            endpoints=self.endpoints,
            stochastic_depth=self.stochastic_depth,
            zero_init=self.zero_init,
            bn_momentum=self.bn_momentum,
            bn_eps=self.bn_eps,
        )

    def differences(self) -> Iterator[str]:
        """Another backbone, width or number of head convolutions."""
        if self.backbone is not None:
            yield f"on {self.backbone.title}"
        if self.width != 1.0:
            yield f"at width {self.width:g}"
        if self.head_convs != self.preset("head_convs"):
            yield f"with {self.head_convs} head convolutions"
