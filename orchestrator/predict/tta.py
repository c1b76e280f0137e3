"""Test-time views of an image: parts of it, at any scale and mirrored, as the network's input.

A network takes images of one size, so a scale is a choice of window: at scale 1 the window is the
image, at 2 it is half as wide and high and four of them cover the image, at 0.5 it is twice the
image, whose outside is black. Each view carries the map back to the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.augment.geometry import Sample, flipped
from orchestrator.data.augment.protocol import Augment, names_pixels
from orchestrator.data.counter_rng import SampleKey

_NO_BOXES = np.zeros((0, 4), np.float32)
_NO_LABELS = np.zeros(0, np.int64)
#: What addresses draws, where none is made.
_KEY = SampleKey(0, 0, 0)


@dataclass(frozen=True)
class Views:
    """Which views of every image the network sees.

    Attributes:
        scales: windows of 1 / scale of the image's sides.
        flip: every view once more, mirrored.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __len__(self) -> int:
        windows = sum(_across(scale) ** 2 for scale in self.scales)
        return windows * (2 if self.flip else 1)

    def of(self, image: NDArray[np.uint8], prepare: Augment) -> list[Sample]:
        """All views of a (h, w, 3) image, brought to the network's size; always equally many.

        ``prepare`` draws nothing: it is the ``plain`` part of an augmentation.
        """
        samples = [sample for scale in self.scales for sample in _windows(image, scale, prepare)]
        if self.flip:
            samples += [flipped(sample, plus_one=names_pixels(prepare)) for sample in samples]
        return samples

    def windows(self, height: int, width: int) -> NDArray[np.float64]:
        """(len, 4) ``left, top, right, bottom`` of what each view shows of an image, in pixels."""
        windows = [one for scale in self.scales for one in _places(height, width, scale)]
        return np.array(windows * (2 if self.flip else 1), np.float64)


def _across(scale: float) -> int:
    """Windows side by side that cover an image; one where they are larger than it."""
    return max(1, math.ceil(scale))


def prepared(image: NDArray[np.uint8], prepare: Augment) -> Sample:
    """A whole (h, w, 3) image at the network's size."""
    return prepare(image, _NO_BOXES, _NO_LABELS, _KEY)


def _windows(image: NDArray[np.uint8], scale: float, prepare: Augment) -> list[Sample]:
    height, width = image.shape[:2]
    places = _places(height, width, scale)
    if scale < 1:
        ((_, _, right, bottom),) = places
        larger = np.zeros((bottom, right, 3), np.uint8)
        larger[:height, :width] = image
        image = larger
    return [_window(image, place, prepare) for place in places]


def _places(height: int, width: int, scale: float) -> list[tuple[int, int, int, int]]:
    """``left, top, right, bottom`` of the windows of an image, row by row."""
    tall, wide = math.ceil(height / scale), math.ceil(width / scale)
    count = _across(scale)
    return [
        (left, top, left + wide, top + tall)
        for top in _starts(height, tall, count)
        for left in _starts(width, wide, count)
    ]


def _starts(length: int, window: int, count: int) -> Sequence[int]:
    """Where ``count`` windows begin that cover ``length`` evenly."""
    return [round(i * (length - window) / max(count - 1, 1)) for i in range(count)]


def _window(image: NDArray[np.uint8], place: tuple[int, int, int, int], prepare: Augment) -> Sample:
    left, top, right, bottom = place
    sample = prepared(np.ascontiguousarray(image[top:bottom, left:right]), prepare)
    sx, sy, tx, ty = sample.transform
    return replace(sample, transform=(sx, sy, tx - left * sx, ty - top * sy))
