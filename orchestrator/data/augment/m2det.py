"""Training augmentation of the M2Det recipe: crop, colour, zoom out, resize, flip.

Source: VDIGPKU/M2Det, data/data_augment.py, at de4a624; the parts are those of the classic SSD
(Liu et al., ECCV 2016, sections 2.2 and 3.6). Deviations, and why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* Where no crop is acceptable another bound is drawn, without end in the recipe and a hundred times
  here; then the image stays whole.
* Where fifty canvases have no room the image stays as it is; the recipe would crash.
* The canvas of zooming out is never drawn: the image is resized into its place on the input, which
  is rounded to whole pixels, and its boxes with it. Drawing millions of pixels to keep a quarter of
  a million took four fifths of the time.
* Colour changes a pixel without looking at its neighbours, so it is done before the resize or after
  it, wherever there are fewer pixels. After it, colours that a resize mixes differ from the
  recipe's by the rounding of a level or two; near black and white, where they are clipped, by more.

An image whose boxes all became too small is used as it was before, as in the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.config.augmentations import M2DetAugmentation
from orchestrator.data.augment.crop import Rect, crop_boxes
from orchestrator.data.augment.geometry import Sample, flipped, placed, resized
from orchestrator.data.augment.patches import (
    ATTEMPTS,
    DRAWS_PER_ATTEMPT,
    DRAWS_PER_ROUND,
    crop_with_iou,
    expanded,
)
from orchestrator.data.augment.photometric import DRAWS as PHOTOMETRIC_DRAWS
from orchestrator.data.augment.photometric import distort
from orchestrator.data.augment.plain import Stretching
from orchestrator.data.counter_rng import Domain, SampleKey

#: One is drawn for each image.
INTERPOLATIONS = (
    cv2.INTER_LINEAR,
    cv2.INTER_CUBIC,
    cv2.INTER_AREA,
    cv2.INTER_NEAREST,
    cv2.INTER_LANCZOS4,
)
_ROUNDS = 100


@dataclass(frozen=True)
class _Part:
    """A part of an image; ``origin`` is its left and top."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    origin: tuple[int, int] = (0, 0)


class M2DetAugment(M2DetAugmentation, Stretching):
    """The augmentation as a pure function of an image, its boxes and a key."""

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
        into: NDArray[np.uint8] | None = None,
    ) -> Sample:
        """Augment one image; see :class:`~orchestrator.data.augment.protocol.Augment`."""
        draw = key.uniforms(Domain.RESIZE, 1)[0]
        interpolation = INTERPOLATIONS[int(draw * len(INTERPOLATIONS))]
        if len(boxes):
            part = self._cropped(_Part(image, boxes, labels), key)
            sample = self._shown(part, self._place(part, key), interpolation, key)
            if key.uniforms(Domain.FLIP, 1)[0] < self.flip_probability:
                sample = flipped(sample, into=into)
            least = self.min_box * np.array([self.size[1], self.size[0]])
            keep = (sample.boxes[:, 2:] - sample.boxes[:, :2] > least).all(axis=1)
            if keep.any():
                return replace(sample, boxes=sample.boxes[keep], labels=sample.labels[keep])
        return resized(image, boxes, labels, self.size, interpolation=interpolation)

    def _cropped(self, whole: _Part, key: SampleKey) -> _Part:
        height, width = whole.image.shape[:2]
        for round_ in range(_ROUNDS):
            # Few images need a second round, and a longer request begins with the shorter one.
            draws = key.uniforms(Domain.CROP, (round_ + 1) * DRAWS_PER_ROUND)[-DRAWS_PER_ROUND:]
            bound = self.min_ious[int(draws[0] * len(self.min_ious))]
            if bound == "whole":
                break
            rect = crop_with_iou(
                whole.boxes,
                (height, width),
                draws[1:],
                min_iou=-np.inf if bound is None else float(bound),
                min_scale=self.min_crop,
            )
            if rect is not None:
                boxes, keep = crop_boxes(whole.boxes, rect)
                image = whole.image[rect.top : rect.bottom, rect.left : rect.right]
                return _Part(image, boxes, whole.labels[keep], (rect.left, rect.top))
        return whole

    def _place(self, part: _Part, key: SampleKey) -> Rect:
        """Where on the input the part is shown."""
        rows, columns = self.size
        draws = key.uniforms(Domain.EXPAND, 1 + ATTEMPTS * DRAWS_PER_ATTEMPT)
        height, width = part.image.shape[:2]
        canvas = None
        if draws[0] < self.expand_probability:
            canvas = expanded((height, width), draws[1:], max_scale=self.expand_ratio)
        if canvas is None:
            return Rect(0, 0, columns, rows)
        left, right = _scaled(canvas.left, width, columns, canvas.width)
        top, bottom = _scaled(canvas.top, height, rows, canvas.height)
        return Rect(left, top, right, bottom)

    def _shown(self, part: _Part, place: Rect, interpolation: int, key: SampleKey) -> Sample:
        """The part, coloured and resized into its place."""
        size = (place.bottom - place.top, place.right - place.left)
        image = part.image
        early = image.shape[0] * image.shape[1] < size[0] * size[1]
        if early:
            image = self._coloured(image, key)
        sample = resized(
            image, part.boxes, part.labels, size, origin=part.origin, interpolation=interpolation
        )
        if not early:
            sample = replace(sample, image=self._coloured(sample.image, key))
        return placed(sample, self.size, self.fill, left=place.left, top=place.top)

    def _coloured(self, image: NDArray[np.uint8], key: SampleKey) -> NDArray[np.uint8]:
        return distort(
            image,
            key.uniforms(Domain.COLOUR, PHOTOMETRIC_DRAWS),
            brightness=self.brightness,
            contrast=self.contrast,
            hue=self.hue,
            saturation=self.saturation,
        )


def _scaled(start: int, length: int, target: int, source: int) -> tuple[int, int]:
    """Begin and end of a stretch of ``source`` pixels among ``target`` ones; one at least."""
    begin = min(round(start * target / source), target - 1)
    return begin, max(begin + 1, round((start + length) * target / source))
