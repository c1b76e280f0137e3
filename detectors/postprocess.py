"""Settings that turn candidates into detections: threshold, suppression and caps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from detectors.settings import Settings

_Unit = Annotated[float, Field(ge=0.0, le=1.0)]
_Cap = Annotated[int, Field(ge=1)] | None


class PostprocessConfig(Settings):
    """What turns scored boxes into detections; all values are part of a published result.

    Attributes:
        score_threshold: a box counts for a class if its score is strictly above this.
        nms: ``hard`` removes overlapping boxes, the soft modes decay their scores (Bodla et al.,
            ICCV 2017): linearly above the IoU threshold, or by ``exp(-iou**2 / sigma)``.
        iou_threshold: overlap strictly above which ``hard`` removes and ``soft_linear`` decays.
        sigma: width of the Gaussian decay; only ``soft_gaussian`` reads it.
        soft_score_threshold: a decayed score below this removes the box; soft modes only.
        plus_one: treat x2 and y2 as the last pixel inside, so that a width is x2 - x1 + 1.
        max_per_class: most detections of one class in one image.
        max_per_image: most detections in one image.
        class_agnostic: let boxes of different classes suppress each other.
    """

    score_threshold: _Unit = 0.05
    nms: Literal["hard", "soft_linear", "soft_gaussian"] = "hard"
    iou_threshold: _Unit = 0.5
    sigma: Annotated[float, Field(gt=0.0)] = 0.5
    soft_score_threshold: _Unit = 0.001
    plus_one: bool = False
    max_per_class: _Cap = None
    max_per_image: _Cap = 100
    class_agnostic: bool = False
