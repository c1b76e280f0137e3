"""Typed configuration of Faster R-CNN: a variant names a published recipe, fields change it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from detectors.backbones.config import (
    AnyBackboneConfig,
    Depth,
    FrozenParts,
    NormName,
    Pooling,
    ResNetConfig,
    check_fit,
)
from detectors.config import (
    BandClaims,
    Count,
    DetectorConfig,
    NonNegative,
    Positive,
    PostprocessConfig,
    Settings,
    Unit,
)

_Size = Annotated[int, Field(ge=64, multiple_of=32)]


class AssignmentConfig(Settings):
    """Which anchors or proposals are examples of what, and which are learnt from.

    Attributes:
        positive_iou: IoU with a box from which one is positive.
        negative_iou: IoU with every box below which one is negative; between, it is ignored.
        claims: what a box does about those it overlaps most.
        claim_iou: least IoU at which a claim counts.
        samples: drawn per image, positives and negatives together.
        positive_fraction: most positives among them.
    """

    positive_iou: Unit
    negative_iou: Unit
    claims: BandClaims
    claim_iou: Unit
    samples: Count
    positive_fraction: Unit


class ProposalConfig(Settings):
    """The first stage: a region proposal network.

    Attributes:
        assignment: of anchors.
        cross_border: whether anchors that reach beyond the image are learnt from.
        fixed_count: divide the losses by ``samples`` times images rather than by the number drawn.
        before_train: best anchors of each level that suppression gets to see in training.
        before_test: the same in evaluation.
        after_train: best proposals of all levels that go to the second stage in training.
        after_test: the same in evaluation.
        nms_iou: overlap strictly above which a better proposal of the same level removes another.
        min_size: shorter proposals are dropped, in pixels.
        beta: where the quadratic part of the box loss ends.
    """

    assignment: AssignmentConfig
    cross_border: bool
    fixed_count: bool
    before_train: Count = 2000
    before_test: Count = 1000
    after_train: Count = 2000
    after_test: Count = 1000
    nms_iou: Unit = 0.7
    min_size: NonNegative
    beta: Positive = 1 / 9


class BoxHeadConfig(Settings):
    """The second stage: classes and boxes of proposals.

    Attributes:
        assignment: of proposals, to which the boxes themselves are added in training: before it
            (torchvision), or after it, each for itself, where boxes claim proposals (the zoo).
        aligned: RoIAlign with pixel centres at half coordinates.
        min_size: shorter boxes score nothing, in pixels.
        beta: where the quadratic part of the box loss ends.
    """

    assignment: AssignmentConfig
    aligned: bool = False
    min_size: NonNegative
    beta: Positive


Variant = Literal["faster_rcnn_mindspore", "faster_rcnn_torchvision"]

_RPN_ASSIGNMENT = {
    "positive_iou": 0.7,
    "negative_iou": 0.3,
    "samples": 256,
    "positive_fraction": 0.5,
}
_HEAD_ASSIGNMENT = {
    "positive_iou": 0.5,
    "negative_iou": 0.5,
    "samples": 512,
    "positive_fraction": 0.25,
}
_POSTPROCESS = {"score_threshold": 0.05, "nms": "hard", "iou_threshold": 0.5}

_PRESETS: dict[str, dict[str, Any]] = {
    "faster_rcnn_mindspore": {
        "input_size": (768, 1280),
        "norm": "affine",
        "legacy_boxes": True,
        "rpn": {
            "assignment": {**_RPN_ASSIGNMENT, "claims": "last_box", "claim_iou": 0.3},
            "cross_border": False,
            "fixed_count": True,
            "min_size": 0.0,
        },
        "head": {
            "assignment": {**_HEAD_ASSIGNMENT, "claims": "last_box", "claim_iou": 0.5},
            "min_size": 0.0,
            "beta": 1.0,
        },
        "postprocess": {**_POSTPROCESS, "max_per_image": 128},
    },
    "faster_rcnn_torchvision": {
        "input_size": (1344, 1344),
        "norm": "frozen",
        "legacy_boxes": False,
        "rpn": {
            "assignment": {**_RPN_ASSIGNMENT, "claims": "best_box", "claim_iou": 0.0},
            "cross_border": True,
            "fixed_count": False,
            "min_size": 1e-3,
        },
        "head": {
            "assignment": {**_HEAD_ASSIGNMENT, "claims": "none", "claim_iou": 0.0},
            "min_size": 1e-2,
            "beta": 1 / 9,
        },
        "postprocess": {**_POSTPROCESS, "max_per_image": 100},
    },
}


class FasterRCNNConfig(DetectorConfig):
    """Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid (Lin et al.), a ResNet's.

    A field that is not given takes the value of the variant's published recipe, at any depth; the
    validated object always holds every value.

    Attributes:
        name: selects this detector.
        variant: whose recipe: the MindSpore model zoo's or torchvision's first version.
        input_size: height and width of the canvas, multiples of 32.
        train_canvas: height and width, multiples of 32, of the canvas of images that are wider than
            high in training; the others come on it turned by 90 degrees, and a batch holds images
            of one kind. Null for ``input_size``, which evaluation has always.
        depth: of the ResNet.
        width: factor on every channel count, rounded to multiples of 8. Anything but 1 is a network
            of our own, and :attr:`title` says so.
        norm: what normalisation layers of the backbone learn: ``batch`` statistics and affine,
            ``affine`` the affine only, ``frozen`` nothing.
        bn_eps: added to the variance there; torchvision's released detector needs 0.
        frozen_parts: leading parts of the backbone that do not train: 1 the stem, 2 the first stage
            as well, and so on.
        pooling: whose pooling, after the stem and of proposals: ``torchvision``, whose classifier
            the recipes begin with, or ``mindspore``, which weights of the MindSpore model zoo need.
        legacy_boxes: coordinates name the first and the last pixel inside, as in the first
            detectors and in the MindSpore zoo, so that a width is x2 - x1 + 1 and no box reaches
            beyond width - 1. It decides over anchors, overlaps, offsets and levels.
        rpn: the first stage.
        head: the second stage.
        postprocess: how candidates become detections.
        backbone: what the features come from instead of the variant's ResNet: any that hands out a
            map of stride 8, and taken from stride 4 on where it has that. ``depth``, ``norm``,
            ``bn_eps`` and ``frozen_parts`` are the ResNet's and have no meaning then.
    """

    builder = "detectors.faster_rcnn.detector:FasterRCNN"
    published = "detectors.faster_rcnn.published:PUBLISHED"
    presets = _PRESETS

    name: Literal["faster_rcnn"] = "faster_rcnn"
    variant: Variant = "faster_rcnn_mindspore"
    # A preset has laid itself over the JSON by the time this is read, and lists are no longer JSON.
    input_size: Annotated[tuple[_Size, _Size], Field(strict=False)]
    train_canvas: Annotated[tuple[_Size, _Size], Field(strict=False)] | None = None
    depth: Depth = 50
    width: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    norm: NormName
    bn_eps: NonNegative = 1e-5
    frozen_parts: FrozenParts = 2
    pooling: Pooling = "torchvision"
    legacy_boxes: bool
    rpn: ProposalConfig
    head: BoxHeadConfig
    postprocess: PostprocessConfig
    backbone: AnyBackboneConfig | None = None

    @field_validator("rpn", "head")
    @classmethod
    def _thresholds_in_order(
        cls, value: ProposalConfig | BoxHeadConfig
    ) -> ProposalConfig | BoxHeadConfig:
        rule = value.assignment
        if rule.negative_iou > rule.positive_iou:
            raise ValueError(
                f"assignment.negative_iou is {rule.negative_iou:g}, above assignment.positive_iou, "
                f"which is {rule.positive_iou:g}; one anchor would be both"
            )
        return value

    @model_validator(mode="after")
    def _backbone_fits(self) -> Self:
        own = ("depth", "norm", "bn_eps", "frozen_parts")
        for size in (self.input_size, *self.train_canvases):
            check_fit(self, self.backbone, strides=(8,), size=size, replaced=own)
        return self

    @model_validator(mode="after")
    def _canvas_turns_within_the_input(self) -> Self:
        if self.train_canvas is None:
            return self
        height, width = self.train_canvas
        if not height < width <= min(self.input_size):
            raise ValueError(
                f"train_canvas is {height} x {width}; its width has to be larger than its height "
                f"and, so that images are as large in evaluation however they are turned, at most "
                f"the shorter side of input_size, {min(self.input_size)}"
            )
        return self

    @property
    def train_canvases(self) -> tuple[tuple[int, int], ...]:
        """Height and width of the canvases of training, wide and tall; none for the input's."""
        return () if self.train_canvas is None else (self.train_canvas, self.train_canvas[::-1])

    @property
    def own_backbone(self) -> ResNetConfig:
        """The variant's ResNet."""
        return ResNetConfig(
            depth=self.depth,
            width=self.width,
            norm=self.norm,
            bn_eps=self.bn_eps,
            frozen_parts=self.frozen_parts,
            pooling=self.pooling,
        )

    def differences(self) -> Iterator[str]:
        """Another backbone, depth or width."""
        if self.backbone is not None:
            yield f"on {self.backbone.title}"
        if self.depth != 50:
            yield f"on ResNet-{self.depth}"
        if self.width != 1.0:
            yield f"at width {self.width:g}"
