"""Typed configuration of RetinaNet on SpineNet: a variant names a published recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, model_validator

from detectors.backbones.spinenet import DIVISOR, Arch
from detectors.base import DetectorConfig
from detectors.postprocess import PostprocessConfig
from detectors.settings import Settings

_Unit: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
_Positive: TypeAlias = Annotated[float, Field(gt=0.0)]
_NonNegative: TypeAlias = Annotated[float, Field(ge=0.0)]
_Count: TypeAlias = Annotated[int, Field(ge=1)]
_Size: TypeAlias = Annotated[int, Field(ge=DIVISOR, multiple_of=DIVISOR)]

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

    base: _Positive = 3.0
    scales_per_octave: _Count = 3
    # Lists are no longer JSON once a preset has laid itself under them.
    ratios: Annotated[tuple[_Positive, ...], Field(min_length=1, strict=False)] = (0.5, 1.0, 2.0)
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

    positive_iou: _Unit = 0.5
    negative_iou: _Unit = 0.5
    claims: bool = True
    claim_iou: _Unit = 1e-5
    border: Literal["ignore", "learn"] = "ignore"
    alpha: _Unit = 0.25
    gamma: _NonNegative = 2.0
    beta: _Positive = 0.11
    cls_weight: _NonNegative = 1.0
    loc_weight: _NonNegative = 1.0

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
    """RetinaNet (Lin et al., ICCV 2017) on SpineNet (Du et al., CVPR 2020).

    A field that is not given takes the value of the variant's published recipe, also inside
    ``anchors``, ``loss`` and ``postprocess``; the validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: member of the SpineNet family.
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
    """

    name: Literal["retinanet"] = "retinanet"
    variant: Variant = "retinanet_spinenet49"
    input_size: Annotated[tuple[_Size, _Size], Field(strict=False)]
    width: Annotated[float, Field(ge=0.05, le=4.0)] = 1.0
    head_convs: _Count
    activation: Literal["relu", "silu"] = "relu"
    endpoints: Literal["linear", "activated"] = "linear"
    stochastic_depth: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    zero_init: bool = True
    bn_momentum: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    bn_eps: _Positive = 1e-3
    anchors: AnchorConfig
    loss: RetinaNetLossConfig
    candidates_per_level: _Count | None = 1000
    postprocess: PostprocessConfig

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, given: Any) -> Any:
        """Lay the given fields over the variant's preset, one level deep."""
        if not isinstance(given, Mapping):
            return given
        variant = given.get("variant", cls.model_fields["variant"].default)
        preset = _PRESETS.get(variant) if isinstance(variant, str) else None
        if preset is None:
            return given
        filled = {**preset, **given}
        for key, default in preset.items():
            value = filled[key]
            if isinstance(default, Mapping) and isinstance(value, Mapping):
                filled[key] = {**default, **value}
        return filled

    @property
    def arch(self) -> Arch:
        """Which SpineNet."""
        return cast(Arch, self.variant.removeprefix("retinanet_spinenet").upper())

    @property
    def title(self) -> str:
        """Name for people; what differs from the published network is part of it."""
        return " ".join(self._title())

    def _title(self) -> Iterator[str]:
        yield self.variant
        published = _PRESETS[self.variant]
        if self.width != 1.0:
            yield f"at width {self.width:g}"
        if self.head_convs != published["head_convs"]:
            yield f"with {self.head_convs} head convolutions"
