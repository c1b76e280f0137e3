"""Training augmentation of the M2Det recipe: crop, colour, zoom out, flip, resize.

Source: VDIGPKU/M2Det, data/data_augment.py, at de4a624; the parts are those of the classic SSD
(Liu et al., ECCV 2016, sections 2.2 and 3.6). Deviations, and why:

* Draws are addressed by sample and epoch instead of taken from a running generator.
* Where no crop is acceptable another bound is drawn, without end in the recipe and a hundred times
  here; then the image stays whole.
* Where fifty canvases have no room the image stays as it is; the recipe would crash.

An image whose boxes all became too small is used as it was before, as in the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.crop import crop_boxes
from orchestrator.data.augment.geometry import Sample, flipped, resized
from orchestrator.data.augment.patches import (
    ATTEMPTS,
    DRAWS_PER_ATTEMPT,
    DRAWS_PER_ROUND,
    crop_with_iou,
    expanded,
)
from orchestrator.data.augment.photometric import DRAWS as PHOTOMETRIC_DRAWS
from orchestrator.data.augment.photometric import distort
from orchestrator.data.augment.plain import PlainResize
from orchestrator.data.keyed import Domain, SampleKey

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
class _View:
    """An image on its way: ``offset`` takes original pixels to its own."""

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    offset: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class M2DetAugment:
    """The augmentation as a pure function of an image, its boxes and a key.

    Attributes:
        size: (H, W) of the network input.
        min_ious: bounds of which one is drawn per image: "whole" leaves the image whole, None
            crops without a bound.
        min_crop: smallest scale of a crop.
        brightness, contrast, hue, saturation: see
            :func:`~orchestrator.data.augment.photometric.distort`.
        expand_probability: of putting the image on a larger canvas.
        expand_ratio: largest scale of that canvas.
        fill: red, green and blue of the rest of it.
        flip_probability: of mirroring left and right.
        min_box: boxes whose width or height is no more than this fraction of the input are dropped.
    """

    size: tuple[int, int]
    min_ious: tuple[float | str | None, ...] = ("whole", 0.1, 0.3, 0.5, 0.7, 0.9, None)
    min_crop: float = 0.3
    brightness: float = 32.0
    contrast: float = 0.5
    hue: int = 18
    saturation: float = 0.5
    expand_probability: float = 0.6
    expand_ratio: float = 4.0
    fill: tuple[int, int, int] = (123, 117, 104)
    flip_probability: float = 0.5
    min_box: float = 0.01

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32],
        labels: NDArray[np.int64],
        key: SampleKey,
    ) -> Sample:
        """Augment one image.

        Args:
            image: (h, w, 3) uint8 RGB.
            boxes: (k, 4) float32 xyxy within the image.
            labels: (k,) int64.
            key: addresses the draws.
        """
        draw = key.uniforms(Domain.RESIZE, 1)[0]
        interpolation = INTERPOLATIONS[int(draw * len(INTERPOLATIONS))]
        if len(boxes):
            view = self._coloured(self._cropped(_View(image, boxes, labels), key), key)
            view = self._expanded(view, key)
            left, top = view.offset
            sample = resized(
                view.image,
                view.boxes,
                view.labels,
                self.size,
                origin=(-left, -top),
                interpolation=interpolation,
            )
            if key.uniforms(Domain.FLIP, 1)[0] < self.flip_probability:
                sample = flipped(sample)
            least = self.min_box * np.array([self.size[1], self.size[0]])
            keep = (sample.boxes[:, 2:] - sample.boxes[:, :2] > least).all(axis=1)
            if keep.any():
                return replace(sample, boxes=sample.boxes[keep], labels=sample.labels[keep])
        return resized(image, boxes, labels, self.size, interpolation=interpolation)

    def plain(self) -> PlainResize:
        """A plain resize."""
        return PlainResize(self.size)

    def _cropped(self, view: _View, key: SampleKey) -> _View:
        height, width = view.image.shape[:2]
        for round_ in range(_ROUNDS):
            # Few images need a second round, and a longer request begins with the shorter one.
            draws = key.uniforms(Domain.CROP, (round_ + 1) * DRAWS_PER_ROUND)[-DRAWS_PER_ROUND:]
            bound = self.min_ious[int(draws[0] * len(self.min_ious))]
            if bound == "whole":
                break
            rect = crop_with_iou(
                view.boxes,
                (height, width),
                draws[1:],
                min_iou=-np.inf if bound is None else float(bound),
                min_scale=self.min_crop,
            )
            if rect is not None:
                boxes, keep = crop_boxes(view.boxes, rect)
                part = view.image[rect.top : rect.bottom, rect.left : rect.right]
                return _View(part, boxes, view.labels[keep], (-rect.left, -rect.top))
        return view

    def _coloured(self, view: _View, key: SampleKey) -> _View:
        image = distort(
            view.image,
            key.uniforms(Domain.COLOUR, PHOTOMETRIC_DRAWS),
            brightness=self.brightness,
            contrast=self.contrast,
            hue=self.hue,
            saturation=self.saturation,
        )
        return replace(view, image=image)

    def _expanded(self, view: _View, key: SampleKey) -> _View:
        draws = key.uniforms(Domain.EXPAND, 1 + ATTEMPTS * DRAWS_PER_ATTEMPT)
        if draws[0] >= self.expand_probability:
            return view
        height, width = view.image.shape[:2]
        canvas = expanded((height, width), draws[1:], max_scale=self.expand_ratio)
        if canvas is None:
            return view
        image = np.empty((canvas.height, canvas.width, 3), dtype=np.uint8)
        image[:] = np.array(self.fill, dtype=np.uint8)
        left, top = canvas.left, canvas.top
        image[top : top + height, left : left + width] = view.image
        boxes = view.boxes + np.array([left, top, left, top], dtype=np.float32)
        return _View(image, boxes, view.labels, (view.offset[0] + left, view.offset[1] + top))
