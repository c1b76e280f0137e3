"""Typed configurations: the rules all of them follow, and what detectors have in common.

Nothing here imports torch, and no ``config.py`` of a detector does: a configuration is checked,
explained and printed without waiting for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

Unit: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0.0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]

#: Height and width in pixels. A preset has laid itself over the JSON by the time this is read, and
#: lists are no longer JSON, which alone may stand for a tuple.
InputSize: TypeAlias = Annotated[tuple[Count, Count], Field(strict=False)]

#: What a box does about the priors it overlaps most where none passes the threshold: nothing; make
#: them positive for whatever box they overlap most; or take them, later boxes overruling.
BandClaims: TypeAlias = Literal["none", "best_box", "last_box"]


class Settings(BaseModel):
    """Strict types, unknown keys refused, frozen, finite numbers only."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class PostprocessConfig(Settings):
    """What turns scored boxes into detections; all values are part of a published result.

    Attributes:
        score_threshold: a box counts for a class if its score is strictly above this.
        top_k_per_class: best boxes of each class of an image that suppression gets to see.
        nms: ``hard`` removes overlapping boxes, the soft modes decay their scores (Bodla et al.,
            ICCV 2017): linearly above the IoU threshold, or by ``exp(-iou**2 / sigma)``.
        iou_threshold: overlap strictly above which ``hard`` removes and ``soft_linear`` decays.
        sigma: width of the Gaussian decay; only ``soft_gaussian`` reads it.
        soft_score_threshold: a decayed score below this removes the box; soft modes only.
        plus_one: treat x2 and y2 as the last pixel inside, so that a width is x2 - x1 + 1.
        max_per_class: most detections of one class in one image.
        max_per_image: most detections in one image.
        class_agnostic: treat all classes as one, in suppression and in the limits per class.
    """

    score_threshold: Unit = 0.05
    top_k_per_class: Count | None = None
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    iou_threshold: Unit = 0.5
    sigma: Positive = 0.5
    soft_score_threshold: Unit = 0.001
    plus_one: bool = False
    max_per_class: Count | None = None
    max_per_image: Count | None = 100
    class_agnostic: bool = False


class FocalLossConfig(Settings):
    """Sigmoid focal loss and the matching that goes with it (MindSpore SSD).

    Attributes:
        name: selects this loss.
        match_threshold: a prior is positive if its IoU with a box is strictly above this.
        alpha: weight of the target channel; every other channel weighs ``1 - alpha``.
        gamma: focusing exponent; 0 is plain binary cross entropy.
        loc_reduction: smooth-L1 of a prior is the sum of its four coordinates (mindspore-ai/models
            since 2021) or their mean (model_zoo before).
        prior_score: what every prior begins with for each class, and 1 minus it for the background
            (Lin et al., Focal Loss for Dense Object Detection, section 4.1, which has 0.01), so
            that the first steps are not spent on the background; None begins at 0.5, as MindSpore's
            does.
    """

    name: Literal["focal"] = "focal"
    match_threshold: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    alpha: Unit = 0.75
    gamma: NonNegative = 2.0
    loc_reduction: Literal["sum", "mean"] = "sum"
    prior_score: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None


class MultiBoxLossConfig(Settings):
    """Softmax cross entropy with hard-negative mining and its matching (the original SSD).

    Attributes:
        name: selects this loss.
        match_threshold: a prior is positive if its IoU with a box is at least this.
        negative_ratio: negatives per positive in each image.
    """

    name: Literal["multibox"] = "multibox"
    match_threshold: Unit = 0.5
    negative_ratio: Positive = 3.0


class DetectorConfig(Settings):
    """Base of every detector's typed configuration: strict, frozen, unknown keys refused.

    A detector whose ``variant`` field names published recipes lists them in :attr:`presets`. A
    value that is not given is then that of the recipe, at any depth, and the validated object
    always holds every value.

    Attributes:
        name: key of the detector in :data:`detectors.registry.DETECTORS`.
        class_weights: factor on the classification loss of examples of each class, in the order of
            the label map; null weighs all alike. Background weighs 1, and what losses are divided
            by does not change.
        postprocess: how this detector's candidates become detections.
        builder: ``module:callable`` that builds the detector, imported when one is built; it is
            called with the configuration and ``num_classes``.
        published: ``module:tuple`` of :class:`detectors.figures.Published`, for a detector with
            published figures.
        presets: values of each variant's published recipe.
    """

    # Built when first used: until then packages that offer sections can be imported.
    model_config = ConfigDict(defer_build=True)

    builder: ClassVar[str]
    published: ClassVar[str | None] = None
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    name: str
    # Described here, since every detector has it.
    class_weights: Annotated[
        tuple[Positive, ...] | None,
        Field(
            strict=False,
            description="factor on the classification loss of examples of each class, in the order "
            "of the label map; null weighs all alike.",
        ),
    ] = None
    postprocess: PostprocessConfig = PostprocessConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_variant(cls, given: Any) -> Any:
        """Lay the given fields over the variant's preset."""
        if not isinstance(given, Mapping) or not cls.presets:
            return given
        variant = given.get("variant", cls.model_fields["variant"].default)
        preset = cls.presets.get(variant) if isinstance(variant, str) else None
        return given if preset is None else _laid_over(preset, given)

    @model_serializer(mode="wrap")
    def _without_default_backbone(self, serialize: SerializerFunctionWrapHandler) -> Any:
        """A backbone is written where one was chosen: files from before the choice stay equal."""
        tree = serialize(self)
        if isinstance(tree, dict) and tree.get("backbone", ...) is None:
            del tree["backbone"]
        return tree

    @property
    def title(self) -> str:
        """Name for people; what differs from the published network is part of it."""
        return " ".join([getattr(self, "variant", self.name), *self.differences()])

    def differences(self) -> Iterator[str]:
        """What makes this another network than the published one, in phrases."""
        yield from ()

    def prior_choices(self, ratios: Sequence[Sequence[float]]) -> Mapping[str, Sequence[Any]]:
        """Values worth trying for the keys that lay out the priors, by dotted key.

        Args:
            ratios: lists of height / width that the boxes of a data set suggest.

        Returns:
            Keys of this section; empty where the priors cannot be chosen.
        """
        return {}

    def preset(self, field: str) -> Any:
        """The published value of a field: the variant's, or the field's default."""
        recipe = self.presets.get(getattr(self, "variant", ""), {})
        return recipe.get(field, type(self).model_fields[field].default)


def _laid_over(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``preset`` with the values of ``given``, mappings merged at any depth."""
    merged = {**preset, **given}
    for key, default in preset.items():
        if isinstance(default, Mapping) and isinstance(merged[key], Mapping):
            merged[key] = _laid_over(default, merged[key])
    return merged
