from __future__ import annotations

import numpy as np
import pytest

from orchestrator.data.augment.ssd import (
    adjust_brightness,
    adjust_colour,
    adjust_contrast,
    adjust_saturation,
)
from tests.support.data_cases import textured

#: red, green, blue and a grey pixel; OpenCV's grey of them: 76, 150, 29 and 100.
PIXELS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]], dtype=np.uint8)
#: Middle of each factor's range with the order brightness, contrast, saturation.
NEUTRAL = np.array([0.0, 0.5, 0.5, 0.5])


def test_brightness_multiplies_and_saturates() -> None:
    image = np.array([[[100, 200, 3]]], dtype=np.uint8)
    assert adjust_brightness(image, 1.25).tolist() == [[[125, 250, 4]]]
    assert adjust_brightness(image, 1.4).tolist() == [[[140, 255, 4]]]
    assert adjust_brightness(image, 0.0).tolist() == [[[0, 0, 0]]]


def test_contrast_blends_with_the_mean_grey_level() -> None:
    # Mean of 76, 150, 29 and 100 is 88.75, which rounds to 89.
    assert adjust_contrast(PIXELS, 0.0).tolist() == [[[89, 89, 89]] * 4]
    halved = adjust_contrast(PIXELS, 0.5)
    assert halved[0, 0].tolist() == [172, 44, 44]  # (255 + 89) / 2; 44.5 rounds to even
    more = adjust_contrast(PIXELS, 1.4)
    assert more[0, 3].tolist() == [104, 104, 104]  # 140 - 0.4 * 89 = 104.4
    assert more[0, 0].tolist() == [255, 0, 0]


def test_saturation_blends_with_the_grey_image() -> None:
    assert adjust_saturation(PIXELS, 0.0)[0, :, 0].tolist() == [76, 150, 29, 100]
    half = adjust_saturation(PIXELS, 0.5)
    assert half[0, 0].tolist() == [166, 38, 38]  # (255 + 76) / 2 = 165.5 rounds to even
    more = adjust_saturation(PIXELS, 1.4)
    assert more[0, 3].tolist() == [100, 100, 100]
    assert more[0, 1].tolist() == [0, 255, 0]


def float_reference(image: np.ndarray, order: str, factors: dict[str, float]) -> np.ndarray:
    """The three adjustments in float64, rounded after each; grey by ITU-R BT.601 weights."""
    values = image.astype(np.float64)
    for step in order:
        grey = np.rint(values @ [0.299, 0.587, 0.114])
        if step == "b":
            values = values * factors["b"]
        elif step == "c":
            values = np.floor(grey.mean() + 0.5) * (1 - factors["c"]) + values * factors["c"]
        else:
            values = grey[..., None] * (1 - factors["s"]) + values * factors["s"]
        values = np.clip(np.rint(values), 0, 255)
    return values


@pytest.mark.parametrize(
    ("place", "order"), list(enumerate(["bcs", "bsc", "cbs", "csb", "sbc", "scb"]))
)
def test_order_and_factors_come_from_the_draws(place: int, order: str) -> None:
    image = textured(40, 50, seed=3)
    draws = np.array([(place + 0.5) / 6, 0.9, 0.1, 0.75])
    got = adjust_colour(image, draws, brightness=0.4, contrast=0.4, saturation=0.4)
    # Factors: 0.6 + 0.8 * draw.
    expected = float_reference(image, order, {"b": 1.32, "c": 0.68, "s": 1.2})
    # Fixed-point grey may differ by one level before the next adjustment rounds.
    assert np.abs(got - expected).max() <= 2
    assert np.abs(got - expected).mean() < 0.05


def test_factor_never_falls_below_zero() -> None:
    draws = np.array([0.0, 0.0, 0.5, 0.5])
    got = adjust_colour(PIXELS, draws, brightness=3.0, contrast=0.0, saturation=0.0)
    assert not got.any()


def test_middle_of_every_range_changes_nothing() -> None:
    image = textured(30, 30, seed=1)
    got = adjust_colour(image, NEUTRAL, brightness=0.4, contrast=0.4, saturation=0.4)
    assert np.array_equal(got, image)


def test_strength_zero_leaves_the_image_alone() -> None:
    draws = np.array([0.3, 0.9, 0.9, 0.9])
    assert adjust_colour(PIXELS, draws, brightness=0, contrast=0, saturation=0) is PIXELS
