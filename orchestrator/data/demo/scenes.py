"""Scenes with handwritten digits: the images of :mod:`orchestrator.data.demo.digits`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from orchestrator.data.counter_rng import Domain, uniforms

#: Side of a scene in pixels.
SCENE_SIZE = 320
#: Digits in a scene that has any.
COUNTS = (7, 11)
#: Side of the square a digit is drawn in; the digit itself is a little smaller.
SIDES = (64, 120)
#: Largest rotation to either side; far beyond it 6 and 9 would become ambiguous.
MAX_DEGREES = 15.0
#: A digit must stay visible to this fraction after all later ones are drawn.
MIN_VISIBLE = 0.85
#: How much of its brightness a background keeps: digits are in light ink of any hue, because a
#: network that trains for minutes would spend most of them on learning both polarities.
GROUND = 0.55
#: By how much the luminance of a digit is at least above that of what lies behind it.
MIN_CONTRAST = 90.0
#: One scene in so many is left without digits.
EMPTY_EVERY = 40

_PLACEMENTS = 12
_DRAWS = 4096
_LUMA = np.array([0.299, 0.587, 0.114])
_Image = NDArray[np.uint8]
_Mask = NDArray[np.float32]


@dataclass(frozen=True)
class SceneSource:
    """Material of one split.

    Attributes:
        glyphs: (n, 8, 8) digits, values 0..16.
        labels: (n,) int64 their classes.
        photographs: (h, w, 3) uint8 RGB backgrounds.
    """

    glyphs: NDArray[np.float64]
    labels: NDArray[np.int64]
    photographs: Sequence[_Image]


class Placed(NamedTuple):
    """A digit in a scene: class, tight ``x, y, width, height`` and area of its visible part."""

    label: int
    box: tuple[int, int, int, int]
    area: int


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: (320, 320, 3) uint8 RGB.
        placed: its digits, in drawing order.
    """

    image: _Image
    placed: tuple[Placed, ...]


class _Draws:
    """The uniform numbers of one scene, taken one after the other."""

    def __init__(self, seed: int, split: int, index: int) -> None:
        self._numbers = uniforms(seed, Domain.SCENE, epoch=split, sample=index, count=_DRAWS)
        self._next = 0

    def take(self, count: int) -> NDArray[np.float64]:
        taken = self._numbers[self._next : self._next + count]
        assert len(taken) == count, "a scene uses far fewer draws than it has"
        self._next += count
        return taken

    def uniform(self, low: float, high: float) -> float:
        return low + float(self.take(1)[0]) * (high - low)

    def integer(self, count: int) -> int:
        """One of 0 .. count - 1."""
        return int(self.take(1)[0] * count)


def render_scene(source: SceneSource, *, seed: int, split: int, index: int) -> Scene:
    """Scene ``index`` of a split: a pure function of its arguments."""
    draws = _Draws(seed, split, index)
    canvas = _background(source.photographs, draws).astype(np.float32) * np.float32(GROUND)
    wanted = COUNTS[0] + draws.integer(COUNTS[1] - COUNTS[0] + 1)
    if index % EMPTY_EVERY == EMPTY_EVERY - 1:
        wanted = 0
    visible: list[NDArray[np.bool_]] = []
    totals: list[int] = []
    labels: list[int] = []
    for _ in range(wanted):
        chosen = draws.integer(len(source.labels))
        alpha = _glyph(source.glyphs[chosen], draws)
        corner = _place(alpha > 0.5, visible, totals, draws)
        if corner is None:
            continue
        x, y = corner
        place = (slice(y, y + alpha.shape[0]), slice(x, x + alpha.shape[1]))
        solid = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.bool_)
        solid[place] = alpha > 0.5
        for seen in visible:
            seen[place] &= ~solid[place]
        visible.append(solid)
        totals.append(int(solid.sum()))
        labels.append(int(source.labels[chosen]))
        _paint(canvas[place], alpha, draws)
    image = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    placed = tuple(
        Placed(label, tight_box(seen), int(seen.sum()))
        for label, seen in zip(labels, visible, strict=True)
    )
    return Scene(image, placed)


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Tight ``x, y, width, height`` of a mask that is not empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _background(photographs: Sequence[_Image], draws: _Draws) -> _Image:
    if draws.integer(2):
        return _photographic(photographs[draws.integer(len(photographs))], draws)
    return _textured(draws)


def _photographic(photograph: _Image, draws: _Draws) -> _Image:
    """A square cut out of a photograph, mirrored, with its contrast lowered."""
    height, width = photograph.shape[:2]
    side = int(draws.uniform(0.35, 1.0) * min(height, width))
    x, y = draws.integer(width - side + 1), draws.integer(height - side + 1)
    crop = cv2.resize(photograph[y : y + side, x : x + side], (SCENE_SIZE, SCENE_SIZE))
    if draws.integer(2):
        crop = cv2.flip(crop, 1)
    gain, offset = draws.uniform(0.5, 0.9), draws.uniform(0.0, 90.0)
    dulled: _Image = cv2.convertScaleAbs(crop, alpha=gain, beta=offset).astype(np.uint8)
    return dulled


def _textured(draws: _Draws) -> _Image:
    """Two colours mixed by noise of several scales, with grain on top."""
    mix = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.float32)
    for cells, weight in ((2, 0.5), (5, 0.3), (24, 0.2)):
        noise = draws.take(cells * cells).reshape(cells, cells).astype(np.float32)
        size = (SCENE_SIZE, SCENE_SIZE)
        mix += weight * cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)
    ends = draws.take(6).reshape(2, 3).astype(np.float32) * 255.0
    texture = ends[0] + np.clip(mix, 0.0, 1.0)[..., None] * (ends[1] - ends[0])
    # Grain needs more numbers than a scene has; a small tile of them is repeated.
    tile = draws.take(40 * 40).reshape(40, 40)
    grain = np.tile(tile - 0.5, (SCENE_SIZE // 40, SCENE_SIZE // 40)) * draws.uniform(4.0, 24.0)
    grainy: _Image = np.clip(np.rint(texture + grain[..., None]), 0, 255).astype(np.uint8)
    return grainy


def _glyph(pixels: NDArray[np.float64], draws: _Draws) -> _Mask:
    """An 8x8 digit as a smooth, rotated coverage mask, cut to its extent."""
    # Sizes are drawn by ratio, so that small digits are as frequent as they are in perspective.
    side = SIDES[0] * (SIDES[1] / SIDES[0]) ** draws.uniform(0.0, 1.0)
    stretch = draws.uniform(0.85, 1.2)
    width, height = round(side * stretch), round(side / stretch)
    padded = np.pad(pixels / 16.0, 1).astype(np.float32)
    enlarged = cv2.resize(padded, (width, height), interpolation=cv2.INTER_CUBIC)
    margin = int(0.3 * max(width, height))
    room = cv2.copyMakeBorder(enlarged, margin, margin, margin, margin, cv2.BORDER_CONSTANT)
    centre = (room.shape[1] / 2.0, room.shape[0] / 2.0)
    turn = cv2.getRotationMatrix2D(centre, draws.uniform(-MAX_DEGREES, MAX_DEGREES), 1.0)
    turned = cv2.warpAffine(room, turn, (room.shape[1], room.shape[0]))
    # A steep ramp around half coverage gives strokes a clear edge at any enlargement.
    alpha: _Mask = np.clip((turned - 0.4) / 0.2, 0.0, 1.0).astype(np.float32)
    x, y, w, h = tight_box(alpha > 0.0)
    return alpha[y : y + h, x : x + w]


def _place(
    solid: NDArray[np.bool_], visible: list[NDArray[np.bool_]], totals: list[int], draws: _Draws
) -> tuple[int, int] | None:
    """Left and top of a place that leaves every earlier digit visible; None if none was found."""
    height, width = solid.shape
    if height > SCENE_SIZE or width > SCENE_SIZE:
        return None
    counts = [int(seen.sum()) for seen in visible]
    for _ in range(_PLACEMENTS):
        x, y = draws.integer(SCENE_SIZE - width + 1), draws.integer(SCENE_SIZE - height + 1)
        if all(
            count - int((seen[y : y + height, x : x + width] & solid).sum()) >= MIN_VISIBLE * total
            for seen, count, total in zip(visible, counts, totals, strict=True)
        ):
            return x, y
    return None


def _paint(canvas: NDArray[np.float32], mask: _Mask, draws: _Draws) -> None:
    """Blend a digit of one random colour into its place, lighter than what is there."""
    behind = float(canvas[mask > 0.5].mean(axis=0) @ _LUMA)
    colour = draws.take(3) * 255.0
    luma, least = float(colour @ _LUMA), min(behind + MIN_CONTRAST, 255.0)
    if luma < least:
        # Towards white, which keeps the hue and cannot leave the range of a pixel.
        colour = colour + (least - luma) / (255.0 - luma) * (255.0 - colour)
    weight = mask[..., None] * draws.uniform(0.9, 1.0)
    canvas += weight * (colour.astype(np.float32) - canvas)
