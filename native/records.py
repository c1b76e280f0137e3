"""Columns that COCO's rules work on, checked when they are put together.

Shape legend: n images, m annotated boxes, d detections, K classes, T thresholds, B ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from native.types import Bool, Float64, Int64, UInt64, checked_array

#: Bits of a word of matches.
_MOST_CELLS = 64


def _check(record: object, **shapes: tuple[type[np.generic], int]) -> None:
    """Make arrays contiguous; refuse other dtypes and dimensions."""
    for name, (dtype, ndim) in shapes.items():
        array = checked_array(name, getattr(record, name), dtype, ndim=ndim)
        object.__setattr__(record, name, array)


def _check_lengths(record: object, *names: str) -> None:
    """Refuse columns of different lengths and boxes that are not of four numbers."""
    lengths = {name: len(getattr(record, name)) for name in names}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of {type(record).__name__} differ in length: {lengths}")
    boxes: npt.NDArray[np.float64] | None = getattr(record, "boxes", None)
    if "boxes" in names and boxes is not None and boxes.shape[1] != 4:
        raise ValueError(f"boxes has shape {boxes.shape}; it must be (rows, 4), x y width height")


@dataclass(frozen=True)
class Annotations:
    """Annotated boxes, image after image.

    Attributes:
        offsets: (n + 1,) int64; image i has rows ``offsets[i]:offsets[i + 1]``.
        labels: (m,) int64, any values.
        boxes: (m, 4) float64 ``x, y, width, height``.
        measures: (m,) float64; what ranges are of, an area for instance.
        crowd: (m,) bool; regions that any number of detections may lie in.

    Raises:
        TypeError: an array has another dtype.
        ValueError: shapes that do not fit, or offsets that fall or do not end at m.
    """

    offsets: Int64
    labels: Int64
    boxes: Float64
    measures: Float64
    crowd: Bool

    def __post_init__(self) -> None:
        _check(
            self,
            offsets=(np.int64, 1),
            labels=(np.int64, 1),
            boxes=(np.float64, 2),
            measures=(np.float64, 1),
            crowd=(np.bool_, 1),
        )
        _check_lengths(self, "labels", "boxes", "measures", "crowd")
        ends = self.offsets[[0, -1]].tolist() if len(self.offsets) else None
        if ends != [0, len(self.labels)] or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"offsets must rise from 0 to the {len(self.labels)} boxes")


@dataclass(frozen=True)
class Detections:
    """Detections, in any order; of equal scores the first counts first.

    Attributes:
        images: (d,) int64 position of the image in :class:`Annotations`.
        labels: (d,) int64.
        boxes: (d, 4) float64 ``x, y, width, height``.
        measures: (d,) float64.
        scores: (d,) float64, none NaN.

    Raises:
        TypeError: an array has another dtype.
        ValueError: shapes that do not fit, or a score that is NaN.
    """

    images: Int64
    labels: Int64
    boxes: Float64
    measures: Float64
    scores: Float64

    def __post_init__(self) -> None:
        _check(
            self,
            images=(np.int64, 1),
            labels=(np.int64, 1),
            boxes=(np.float64, 2),
            measures=(np.float64, 1),
            scores=(np.float64, 1),
        )
        _check_lengths(self, *(field.name for field in fields(self)))
        _check_scores(self.scores)


@dataclass(frozen=True)
class MatchParams:
    """Thresholds and ranges of a matching: T * B answers for each detection, one bit each.

    Attributes:
        thresholds: (T,) float64 IoU from which a detection matches.
        ranges: (B, 2) float64 lowest and highest measure that counts; both ends count.
        limit: detections of a class in an image that take part, the best.

    Raises:
        TypeError: an array has another dtype.
        ValueError: no question, or more than 64.
    """

    thresholds: Float64
    ranges: Float64
    limit: int

    def __post_init__(self) -> None:
        _check(self, thresholds=(np.float64, 1), ranges=(np.float64, 2))
        if self.ranges.shape[1] != 2:
            raise ValueError(f"ranges has shape {self.ranges.shape}; it must be (ranges, 2)")
        cells = len(self.thresholds) * len(self.ranges)
        if not 1 <= cells <= _MOST_CELLS:
            raise ValueError(f"{cells} pairs of threshold and range: allowed are 1..{_MOST_CELLS}")
        if self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1")


@dataclass(frozen=True)
class MatchedDetections:
    """Detections with their matches, of any number of :func:`native.match_detections` calls.

    Rows of one image come from one call and keep their order; how images follow each other changes
    nothing.

    Attributes:
        images: (d,) int64, not below 0; they decide between equal scores.
        labels: (d,) int64 in 0..K-1.
        scores: (d,) float64, none NaN.
        true_positives, false_positives: (d,) uint64.
        ranks: (d,) int64.

    Raises:
        TypeError: an array has another dtype.
        ValueError: columns of different lengths, a negative image, or a score that is NaN.
    """

    images: Int64
    labels: Int64
    scores: Float64
    true_positives: UInt64
    false_positives: UInt64
    ranks: Int64

    def __post_init__(self) -> None:
        _check(
            self,
            images=(np.int64, 1),
            labels=(np.int64, 1),
            scores=(np.float64, 1),
            true_positives=(np.uint64, 1),
            false_positives=(np.uint64, 1),
            ranks=(np.int64, 1),
        )
        _check_lengths(self, *(field.name for field in fields(self)))
        _check_scores(self.scores)
        if len(self.images) and self.images.min() < 0:
            raise ValueError(f"images[{int(self.images.argmin())}] is negative")

    @classmethod
    def join(cls, parts: Sequence[MatchedDetections]) -> MatchedDetections:
        """All rows of one or more."""
        names = [field.name for field in fields(cls)]
        return cls(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


@dataclass(frozen=True)
class AccumulateParams:
    """Boxes that count, and the recalls and limits at which the curves are read.

    Attributes:
        boxes: (K, B) int64 boxes that count, by class and range.
        levels: T, the number of thresholds.
        recalls: (R,) float64 rising recalls at which precision is read.
        limits: (L,) int64 rising numbers of detections of a class in an image.

    Raises:
        TypeError: an array has another dtype.
        ValueError: a number of boxes is negative, or something that has to rise does not.
    """

    boxes: Int64
    levels: int
    recalls: Float64
    limits: Int64

    def __post_init__(self) -> None:
        _check(self, boxes=(np.int64, 2), recalls=(np.float64, 1), limits=(np.int64, 1))
        if (self.boxes < 0).any():
            raise ValueError("boxes holds a negative number")
        if not 1 <= self.levels * max(self.boxes.shape[1], 1) <= _MOST_CELLS:
            raise ValueError(f"{self.levels} levels of {self.boxes.shape[1]} ranges")
        for name in ("recalls", "limits"):
            if not (np.diff(getattr(self, name)) > 0).all():
                raise ValueError(f"{name} must rise")


def _check_scores(scores: Float64) -> None:
    if np.isnan(scores).any():
        raise ValueError(f"scores[{int(np.isnan(scores).argmax())}] is NaN")
